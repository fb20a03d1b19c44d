"""Where the library of C++ kernels is cached, and which cached files are loaded."""

import os
import pwd
import tempfile

import jax
import pytest

from nvae_jax import files
from nvae_jax.ops.cpu.native import shared_library
from tests.ops.implementations import NEEDS_COMPILER

pytestmark = NEEDS_COMPILER
SOURCE = 'extern "C" int answer() { return %d; }'


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """A library of one small function, two folders for its cache, and one for temporary files."""
    monkeypatch.setattr(shared_library, "FOLDER", tmp_path)
    monkeypatch.setattr(shared_library, "SOURCES", ("one.cc",))
    monkeypatch.setattr(shared_library, "HEADERS", ())
    (tmp_path / "one.cc").write_text(SOURCE % 42)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folders = [tmp_path / "cache" / "native", tmp_path / "home" / "native"]
    monkeypatch.setattr(shared_library, "_folders", lambda: folders)
    return tmp_path


@pytest.fixture
def compiled(monkeypatch):
    """The paths that the compiler has written."""
    calls, original = [], shared_library._compile

    def counted(compiler, folder):
        calls.append(folder)
        return original(compiler, folder)

    monkeypatch.setattr(shared_library, "_compile", counted)
    return calls


@pytest.fixture
def warnings(monkeypatch):
    """The warnings."""
    lines = []
    monkeypatch.setattr(
        shared_library.logging, "warning", lambda text, *values: lines.append(text % values)
    )
    return lines


def call_library():
    return shared_library.load(["c++"]).answer()


def cached_files(folder):
    return list(folder.glob("native/*.so"))


def test_the_library_is_compiled_once_and_cached_in_a_private_folder(folders, compiled, warnings):
    assert call_library() == call_library() == 42
    assert len(compiled) == 1 and not warnings
    assert (folders / "cache" / "native").stat().st_mode & 0o777 == 0o700
    assert len(cached_files(folders / "cache")) == 1 and not (folders / "home").exists()


def test_a_library_in_a_folder_that_others_can_write_is_not_loaded(folders, warnings):
    folder, name = folders / "cache" / "native", shared_library._identity(["c++"])
    (folders / "one.cc").write_text(SOURCE % 13)
    planted = shared_library._compile(["c++"], folders)
    (folders / "one.cc").write_text(SOURCE % 42)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    planted.rename(folder / f"{name}_{shared_library._digest(planted)}.so")
    assert call_library() == 42
    assert len(cached_files(folders / "home")) == 1
    assert len(warnings) == 1 and f"others can write to {folder}" in warnings[0]


def truncate(path):
    content = path.read_bytes()
    path.unlink()  # this process has loaded the library already
    path.write_bytes(content[: len(content) // 2])
    return "is damaged"


def let_others_write(path):
    path.chmod(0o666)
    return "others can write"


def give_to_another_user(path):
    if os.geteuid():
        pytest.skip("needs root")
    os.chown(path, 12345, 12345)
    return "belongs to another user"


@pytest.mark.parametrize("spoil", [truncate, let_others_write, give_to_another_user])
def test_a_cached_file_that_cannot_be_trusted_is_replaced(folders, compiled, warnings, spoil):
    call_library()
    (path,) = cached_files(folders / "cache")
    fault = spoil(path)
    assert call_library() == call_library() == 42
    assert len(compiled) == 2 and len(warnings) == 1 and fault in warnings[0]


def test_without_a_cache_folder_the_library_is_temporary_and_removed(folders, compiled, warnings):
    for name in ("cache", "home"):
        (folders / name).write_text("no folder")
    assert call_library() == 42
    assert compiled[0].startswith(str(folders / "temporary"))
    assert not list((folders / "temporary").iterdir())
    assert len(warnings) == 1 and "for this process only" in warnings[0]


def test_a_cached_library_is_used_from_a_read_only_folder(folders, compiled, warnings, monkeypatch):
    call_library()

    def read_only(*_):
        raise PermissionError

    monkeypatch.setattr(files, "locked", read_only)
    assert call_library() == 42 and len(compiled) == 1 and not warnings


def test_the_cache_folders_are_beside_the_compilation_cache_and_in_the_home_folder(
    monkeypatch, tmp_path, compilation_cache
):
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    beside, home = shared_library._folders()
    assert str(beside) == f"{compilation_cache}/native"
    assert home == tmp_path / ".cache" / "nvae_jax" / "native"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert shared_library._folders() == [beside]
    try:
        jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
        assert shared_library._folders() == []
    finally:
        jax.config.update("jax_compilation_cache_dir", compilation_cache)
