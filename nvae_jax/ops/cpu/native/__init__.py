"""C++ kernels for float32 on one CPU device, compiled on the machine where they run.

XLA's CPU backend passes over memory for every padding, transposition and sum. The kernels read an
input once and keep intermediate values in the first-level caches.
"""

import functools
import os
import shlex
import shutil
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax.ops.cpu.native import shared_library

KERNELS = (
    "conv_correlate",
    "conv_input_grad",
    "conv_kernel_grad",
    "depthwise_correlate",
    "depthwise_input_grad",
    "depthwise_kernel_grad",
    "inverted_residual",
    "moments",
    "norm_grad",
    "norm_swish",
    "norm_swish_grad",
    "adamax",
    "norm",
    "spectral",
    "spectral_grad",
    "stack",
    "unstack",
)


def call(
    name: str,
    results: Any,
    *arrays: jax.Array,
    in_place: dict[int, int] | None = None,
    **attributes: Any,
) -> Any:
    """Calls one kernel.

    Args:
      name: one of `KERNELS`. Convolutions (kind_map) are as in `ops.portable.depthwise`, for
        kernels (k, k, C) and (k, k, C, O); `moments` maps x (N, C) to mean and variance (C,) each;
        `norm_grad` maps x, the gradient of y, scale, bias, mean and variance to the gradients for
        x, scale and bias. Kernels for lists of arrays are described in their sources.
      results: shape of the result, or a list of shapes.
      *arrays: the arguments: float32, or int32 for indices and counts.
      in_place: {number of an argument: number of the result that can overwrite it}.
      **attributes: floats, integers or lists of integers; for convolutions the stride, 1 or 2, and
        `low`, the number of zeros in front.

    Raises:
      RuntimeError: if the kernels are not available; the message says why.
    """
    if problem():
        raise RuntimeError(f"there are no native kernels: {problem()}")
    results = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        results,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    function = jax.ffi.ffi_call(
        _target(name), results, vmap_method="sequential", input_output_aliases=in_place
    )
    return function(*arrays, **{key: _attribute(value) for key, value in attributes.items()})


def _attribute(value):
    return np.float32(value) if isinstance(value, float) else np.asarray(value, np.int64)[()]


def _target(name):
    return f"nvae_jax_{name}"


@functools.cache
def problem() -> str | None:
    """Compiles and registers the kernels, and explains why they are not available; None if they
    are.

    They are compiled once per machine.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if not shutil.which(compiler[0]):
        return f"there is no C++ compiler {compiler[0]!r} (on Debian: apt-get install g++)"
    try:
        library = shared_library.load(compiler)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or ["no message"]
        return f"{compiler[0]} cannot compile {shared_library.FOLDER}: {lines[0]}"
    except subprocess.TimeoutExpired as error:
        return f"{compiler[0]} did not finish within {error.timeout:.0f} s"
    except OSError as error:
        return str(error)
    for name in KERNELS:
        function = jax.ffi.pycapsule(getattr(library, _target(name)))
        jax.ffi.register_ffi_target(_target(name), function, platform="cpu")
    return None
