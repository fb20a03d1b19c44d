"""The compiler options of programs."""

import pytest

from nvae_jax.ops import compiler


@pytest.fixture(autouse=True)
def forget():
    compiler.options.cache_clear()
    yield
    compiler.options.cache_clear()


@pytest.mark.parametrize("kind", [{}, {"runs_once": True}, {"unrolled": True}])
def test_xla_flags_of_the_user_override_the_options(monkeypatch, kind):
    monkeypatch.setenv("XLA_FLAGS", "")
    ours = compiler.options("cpu", **kind)
    assert "xla_backend_optimization_level" in ours
    compiler.options.cache_clear()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_x=1 --xla_backend_optimization_level=3")
    theirs = compiler.options("cpu", **kind) or {}
    assert theirs == {k: v for k, v in ours.items() if k != "xla_backend_optimization_level"}


def test_options_unknown_to_the_installed_xla_are_left_out(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    known = {"xla_backend_optimization_level": 1, "xla_cpu_prefer_vector_width": 256}
    monkeypatch.setattr(compiler, "CPU", {"xla_no_such_option": 1, **known})
    assert compiler.options("cpu") == known
    compiler.options.cache_clear()
    monkeypatch.setattr(compiler, "CPU", {"xla_no_such_option": 1})
    assert compiler.options("cpu") is None


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_xla_flags_of_the_user_override_the_options_of_accelerators(monkeypatch, platform):
    ours = {"xla_backend_optimization_level": 2, "xla_gpu_autotune_level": 3}
    monkeypatch.setattr(compiler, platform.upper(), ours)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    assert compiler.options(platform) == {"xla_backend_optimization_level": 2}


def test_gpu_programs_that_run_once_have_their_own_options(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(compiler, "GPU_RUNS_ONCE", {"xla_gpu_autotune_level": 0})
    assert compiler.options("gpu", runs_once=True) == {"xla_gpu_autotune_level": 0}
    assert compiler.options("gpu") is None
