"""Convolutions in C++ for float32 on one CPU device, compiled where they run.

XLA's CPU backend makes a pass over memory of every padding, and two of a sum over channels that has
to be turned round; these read each input once, and keep what they work on in the first caches.
"""

import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from nvae_jax import files

FOLDER = Path(__file__).parent
SOURCES = ("convolution.cc", "depthwise.cc")
HEADERS = ("common.h",)
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
MAPS = ("correlate", "input_grad", "kernel_grad")


def call(kind, name, shape, a, b, *, stride, low):
    """One of `MAPS`, as `nvae_jax.ops.depthwise` defines them.

    Args:
      kind: "depthwise" or "conv".
      shape: of the result.
      a, b: (x, kernel), (gradient of y, kernel) or (x, gradient of y); float32, NHWC and HWIO, the
        kernel of a depthwise convolution (k, k, C).
      stride: 1 or 2.
      low: zeros in front of every axis.

    Raises:
      RuntimeError: the kernels cannot be had; the message says why.
    """
    if problem():
        raise RuntimeError(f"there are no native convolutions: {problem()}")
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    function = jax.ffi.ffi_call(_target(kind, name), result, vmap_method="sequential")
    return function(a, b, stride=np.int64(stride), low=np.int64(low))


def _target(kind, name):
    return f"nvae_jax_{kind}_{name}"


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
    except OSError as error:
        return str(error)
    for kind, name in itertools.product(("conv", "depthwise"), MAPS):
        function = jax.ffi.pycapsule(getattr(library, _target(kind, name)))
        jax.ffi.register_ffi_target(_target(kind, name), function, platform="cpu")
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
    sources = [str(FOLDER / name) for name in SOURCES]
    command = [*compiler, *FLAGS, "-isystem", jax.ffi.include_dir(), *sources]
    with files.replacing(path) as temporary:
        subprocess.run([*command, "-o", str(temporary)], check=True, capture_output=True, text=True)
    return path


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
