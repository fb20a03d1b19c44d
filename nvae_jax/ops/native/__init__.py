"""Kernels in C++ for float32 on one CPU device, compiled where they run.

XLA's CPU backend makes a pass over memory of every padding, every turned copy and every sum. These
read an input once, and keep what they work on in the first caches.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from absl import logging

from nvae_jax import files

FOLDER = Path(__file__).parent
SOURCES = (
    "convolution.cc",
    "depthwise.cc",
    "inverted_residual.cc",
    "normalization.cc",
    "optimizer.cc",
    "spectral.cc",
    "squeeze_excitation.cc",
    "stacks.cc",
    "weight_norm.cc",
)
HEADERS = ("common.h", "depthwise.h", "vectors.h")
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp-simd", "-fPIC"),
    "-ffp-contract=fast",  # a product and a sum are one instruction, also where Clang compiles
    "-fno-trapping-math",  # else divisions in loops are done entry by entry
)
KERNELS = (
    "conv_correlate",
    "conv_input_grad",
    "conv_kernel_grad",
    "depthwise_correlate",
    "depthwise_input_grad",
    "depthwise_kernel_grad",
    "depthwise_activated_correlate",
    "depthwise_activated_input_grad",
    "entry",
    "inverted_residual",
    "moments",
    "norm_grad",
    "norm_swish",
    "norm_swish_grad",
    "adamax",
    "norm",
    "spectral",
    "spectral_grad",
    "gate",
    "gate_grad",
    "stack",
    "unstack",
    "weight_norm",
    "weight_norm_grad",
)


def call(name, results, *arrays, in_place=None, **attributes):
    """One kernel.

    Args:
      name: one of `KERNELS`. Convolutions (kind_map) are as in `nvae_jax.ops.depthwise`, for
        kernels (k, k, C) and (k, k, C, O); `moments` maps x (N, C) to mean and variance (C,) each;
        `norm_grad` maps x, the gradient of y, scale, bias, mean and variance to the gradients for
        x, scale and bias. Those for lists of arrays are described in their sources.
      results: its shape, or a list of shapes.
      arrays: float32; indices and counts int32.
      in_place: {number of an array: number of the result that may be written over it}.
      attributes: floats, integers or lists of integers; of convolutions the stride, 1 or 2, and
        `low`, the zeros in front.

    Raises:
      RuntimeError: the kernels cannot be had; the message says why.
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
def problem():
    """What keeps the kernels from being had here, or None. Compiles them, at the first time on a
    machine, and makes them known to XLA."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if not shutil.which(compiler[0]):
        return f"there is no C++ compiler {compiler[0]!r} (on Debian: apt-get install g++)"
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or ["no message"]
        return f"{compiler[0]} cannot compile {FOLDER}: {lines[0]}"
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        return str(error)
    for name in KERNELS:
        function = jax.ffi.pycapsule(getattr(library, _target(name)))
        jax.ffi.register_ffi_target(_target(name), function, platform="cpu")
    return None


def _compiled(compiler):
    """The path of the shared library, which is kept for the next process."""
    texts = [(FOLDER / name).read_text() for name in (*SOURCES, *HEADERS)]
    identity = (*texts, jaxlib.__version__, *compiler, *FLAGS, _processor())
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    path = _folder() / f"kernels_{digest}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        path = Path(tempfile.mkdtemp()) / path.name
    # The processes of a machine begin together: one compiles, the others wait for it.
    with files.locked(path.with_suffix(".lock")):
        if not path.exists():
            _compile(compiler, path)
    return path


def _compile(compiler, path):
    logging.info("compiling %s, once on this machine", FOLDER)
    command = [*compiler, *FLAGS, "-isystem", jax.ffi.include_dir()]

    def run(*arguments):
        subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)

    with tempfile.TemporaryDirectory() as folder, files.replacing(path) as temporary:
        objects = [f"{folder}/{name}.o" for name in SOURCES]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sources = (str(FOLDER / name) for name in SOURCES)
            list(pool.map(lambda source, to: run("-c", source, "-o", to), sources, objects))
        run("-shared", *objects, "-o", str(temporary))


def _folder():
    """Beside the programs that JAX keeps, where it does."""
    kept = jax.config.jax_compilation_cache_dir or Path.home() / ".cache" / "nvae_jax"
    return Path(kept) / "native"


def _processor():
    """What -march=native may mean on this machine: a home directory may serve several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
