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
def place(tmp_path, monkeypatch):
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
def said(monkeypatch):
    """The warnings."""
    lines = []
    monkeypatch.setattr(
        shared_library.logging, "warning", lambda text, *values: lines.append(text % values)
    )
    return lines


def answer():
    return shared_library.load(["c++"]).answer()


def kept(folder):
    return list(folder.glob("native/*.so"))


def test_the_library_is_compiled_once_and_cached_in_a_private_folder(place, compiled, said):
    assert answer() == answer() == 42
    assert len(compiled) == 1 and not said
    assert (place / "cache" / "native").stat().st_mode & 0o777 == 0o700
    assert len(kept(place / "cache")) == 1 and not (place / "home").exists()


def test_a_library_in_a_folder_that_others_can_write_is_not_loaded(place, said):
    folder, name = place / "cache" / "native", shared_library._identity(["c++"])
    (place / "one.cc").write_text(SOURCE % 13)
    planted = shared_library._compile(["c++"], place)
    (place / "one.cc").write_text(SOURCE % 42)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    planted.rename(folder / f"{name}_{shared_library._digest(planted)}.so")
    assert answer() == 42
    assert len(kept(place / "home")) == 1
    assert len(said) == 1 and f"others can write to {folder}" in said[0]


def not_whole(path):
    content = path.read_bytes()
    path.unlink()  # this process has loaded the library already
    path.write_bytes(content[: len(content) // 2])
    return "is damaged"


def anybodys(path):
    path.chmod(0o666)
    return "others can write"


def another_users(path):
    if os.geteuid():
        pytest.skip("needs root")
    os.chown(path, 12345, 12345)
    return "belongs to another user"


@pytest.mark.parametrize("spoil", [not_whole, anybodys, another_users])
def test_a_cached_file_that_cannot_be_trusted_is_replaced(place, compiled, said, spoil):
    answer()
    (path,) = kept(place / "cache")
    fault = spoil(path)
    assert answer() == answer() == 42
    assert len(compiled) == 2 and len(said) == 1 and fault in said[0]


def test_without_a_cache_folder_the_library_is_temporary_and_removed(place, compiled, said):
    for name in ("cache", "home"):
        (place / name).write_text("no folder")
    assert answer() == 42
    assert compiled[0].startswith(str(place / "temporary"))
    assert not list((place / "temporary").iterdir())
    assert len(said) == 1 and "for this process only" in said[0]


def test_a_cached_library_is_used_from_a_read_only_folder(place, compiled, said, monkeypatch):
    answer()

    def read_only(*_):
        raise PermissionError

    monkeypatch.setattr(files, "locked", read_only)
    assert answer() == 42 and len(compiled) == 1 and not said


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
