"""Invalid calls of C++ kernels, and errors inside of them."""

import ctypes
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.ops.cpu import native
from nvae_jax.ops.cpu.native import shared_library
from tests.ops.implementations import NEEDS_COMPILER

pytestmark = NEEDS_COMPILER


def ones(*shape):
    return jnp.asarray(np.ones(shape, np.float32))  # which compiles nothing


X, W3, W4, V = (2, 4, 4, 3), (5, 5, 3), (3, 3, 3, 3), (3,)
ROWS = (32, 3)
AT = {"stride": 1, "low": 1}
PLACES = {"places": [0], "starts": [0]}
RATES = {"b1": 0.9, "b2": 0.999, "epsilon": 1e-3, "decay": 0.0}
BODY = [(2, 4, 4, 3), (1, 1, 3, 18), (5, 5, 18), (1, 1, 18, 3)]
NORMS = [(3,), (3,), (18,), (18,), (18,), (18,), (3,), (3,)]

# A valid call: (results, arrays, attributes).
RIGHT = {
    "conv_correlate": ([X], [X, W4], AT),
    "conv_input_grad": ([X], [X, W4], AT),
    "conv_kernel_grad": ([W4], [X, X], AT),
    "depthwise_correlate": ([X], [X, W3], AT),
    "depthwise_input_grad": ([X], [X, W3], AT),
    "depthwise_kernel_grad": ([W3], [X, X], AT),
    "inverted_residual": ([X], [*BODY, *NORMS], {"stride": 1, "low": 2}),
    "moments": ([V, V], [ROWS], {}),
    "norm_swish": ([ROWS], [ROWS, V, V, V, V], {"epsilon": 1e-5}),
    "norm_grad": ([ROWS, V, V], [ROWS, ROWS, V, V, V, V], {"epsilon": 1e-5}),
    "norm_swish_grad": ([ROWS, V, V], [ROWS, ROWS, V, V, V, V], {"epsilon": 1e-5}),
    "norm": ([()], [X, V], {}),
    "adamax": ([V, V, V], [(3,), V, V, V, V], {**RATES, **PLACES}),
    "spectral": ([(), (27,), V], [None, W4, V], PLACES),
    "spectral_grad": ([W4], [(), (27,), W4, V], PLACES),
    "stack": ([(2, 3)], [V, V], {}),
    "unstack": ([V, V], [(2, 3)], {}),
}


def call(name, results, arrays, attributes):
    """Calls a kernel; an attribute of `None` stands for the rounds of power iteration."""
    given = [jnp.int32(2) if shape is None else ones(*shape) for shape in arrays]
    return jax.block_until_ready(native.call(name, results, *given, **attributes))


def test_this_file_has_a_call_of_every_kernel():
    assert set(RIGHT) == set(native.KERNELS)


@pytest.mark.parametrize("name", RIGHT)
def test_valid_calls_succeed(name):
    call(name, *RIGHT[name])


# (kernel, array, axis) of sizes that can have any value.
FREE = {("moments", 0, 0), ("norm", 0, 0), ("norm", 1, 0)}
# Vectors that are stored in a larger array, whose size is not checked.
FREE |= {("spectral_grad", 3, axis) for axis in (None, 0)}


def others(shape):
    """Shapes of another rank or with another size of one axis, as (shape, axis)."""
    yield None, (7, *shape)
    yield from ((a, (*shape[:a], n + 1, *shape[a + 1 :])) for a, n in enumerate(shape))


def wrong_calls():
    for name, (results, arrays, attributes) in RIGHT.items():
        shapes = [*arrays, *results]
        for i, shape in enumerate(shapes):
            for axis, other in others(shape) if shape is not None else ():
                # Any rank is valid here, and any height or width of a convolution.
                is_size = "conv" in name or "depthwise" in name
                is_size = is_size and len(shape) == 4 and shape != W4 and axis in (1, 2)
                if is_size or (name, i, axis) in FREE or (name == "norm" and axis != 0):
                    continue
                changed = [other if j == i else s for j, s in enumerate(shapes)]
                yield name, changed[len(arrays) :], changed[: len(arrays)], attributes
        wrong = {"stride": (0, 3, -1), "low": (-1, 9), "places": ([1], [-1]), "starts": ([1], [-1])}
        for key, values in wrong.items():
            for value in values if key in attributes else ():
                yield name, results, arrays, {**attributes, key: value}


def test_calls_with_wrong_shapes_are_errors():
    for wrong in wrong_calls():
        with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
            call(*wrong)
            print(wrong)  # this invalid call was accepted


def calls_of_another_kind():
    """Calls with a missing, an additional or a wrongly typed attribute; with arrays that are not
    float32; with one array more or less."""
    for name, (results, arrays, attributes) in RIGHT.items():
        yield name, results, arrays, {**attributes, "more": 1}
        for key, value in attributes.items():
            yield name, results, arrays, {k: v for k, v in attributes.items() if k != key}
            yield name, results, arrays, {**attributes, key: 0.5 if isinstance(value, int) else 1}
        if name != "spectral":
            yield name, results, [None, *arrays[1:]], attributes
        if name not in ("norm", "stack", "spectral_grad"):  # of any number of arrays
            yield name, results, [*arrays, V], attributes
            yield name, results, arrays[:-1], attributes
        if name != "unstack":
            yield name, [*results, V], arrays, attributes


def test_calls_with_wrong_attributes_or_numbers_of_arrays_are_errors():
    for wrong in calls_of_another_kind():
        with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
            call(*wrong)
            print(wrong)  # this invalid call was accepted


THROWING = """
#include "common.h"
void Throw(ThreadPool pool, Array x, Result y) {
  auto fails = [](Index i) { if (i == 5) throw std::bad_alloc(); };
  if (x.element_count() == 1) Parallel(pool, 8, fails);
  Parallel(pool, 8, fails, 8, [](Index) {});
}
NVAE_JAX_EXPORT(throw_in_a_task, Throw)
"""


def test_an_exception_in_a_thread_becomes_an_error(tmp_path):
    (tmp_path / "throw.cc").write_text(THROWING)
    folders = [f"-I{shared_library.FOLDER}", "-isystem", jax.ffi.include_dir()]
    command = ["c++", *shared_library.FLAGS, *folders, "-shared", str(tmp_path / "throw.cc")]
    subprocess.run([*command, "-o", str(tmp_path / "throw.so")], check=True)
    function = ctypes.CDLL(str(tmp_path / "throw.so")).throw_in_a_task
    jax.ffi.register_ffi_target("throw_in_a_task", jax.ffi.pycapsule(function), platform="cpu")
    for shape in ((1,), (2,)):
        run = jax.ffi.ffi_call("throw_in_a_task", jax.ShapeDtypeStruct(shape, jnp.float32))
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED: out of memory"):
            jax.block_until_ready(run(ones(*shape)))


def test_a_compiler_that_hangs_is_stopped(tmp_path, monkeypatch):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexec sleep 60\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(shared_library, "COMPILER_TIMEOUT", 0.1)
    monkeypatch.setattr(shared_library, "_folders", lambda: [])
    native.problem.cache_clear()
    try:
        assert "did not finish within" in native.problem()
    finally:
        native.problem.cache_clear()


def test_different_arm_processors_have_different_names(monkeypatch):
    texts = {}
    for part in ("0xd0c", "0xd40"):
        text = f"processor: 0\nCPU implementer\t: 0x41\nCPU part\t: {part}\nFeatures\t: fp asimd\n"
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        texts[part] = shared_library._processor()
    assert len(set(texts.values())) == 2
