"""Functions that all commands share."""

import pwd

import jax
import pytest

from nvae_jax import cli, files


@pytest.fixture
def no_home(monkeypatch, compilation_cache):
    """A user without a home folder: HOME is not set, and the system does not know the user."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    yield
    jax.config.update("jax_compilation_cache_dir", compilation_cache)


def test_without_a_home_folder_programs_are_cached_only_where_the_variable_says(
    no_home, monkeypatch
):
    assert files.cache_folder() is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/cache")
    cli._use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == "/cache"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    cli._use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_cannot_be_written_is_reported_once(
    monkeypatch, tmp_path, capsys, compilation_cache
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "file"))
    cli._use_compilation_cache()
    try:
        jax.jit(lambda x: jax.numpy.sin(x) @ x.T)(jax.numpy.ones((3, 3)))
    finally:
        jax.config.update("jax_compilation_cache_dir", compilation_cache)
    (line,) = capsys.readouterr().err.splitlines()
    assert "compiled programs are not cached" in line and str(tmp_path / "file") in line


def test_an_error_is_printed_as_one_line_with_its_notes():
    error = OSError("no space\nleft")
    error.add_note("the newest checkpoint is step 4")
    error.add_note("--------------------\nFor simplicity, JAX has removed its internal frames")
    assert cli._first_line(error) == "no space; the newest checkpoint is step 4"
    assert cli._first_line(ValueError()) == "ValueError"
