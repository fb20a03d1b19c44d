"""C++ kernels for float32 on one CPU device, compiled where they run; other dtypes get `shifted`.

XLA makes a pass over memory of the padding and one of every sum; these read each input once.
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
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from nvae_jax import files
from nvae_jax.ops.depthwise import shifted
from nvae_jax.ops.depthwise.geometry import upsampling

SOURCE = Path(__file__).with_name("native.cc")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")
TARGETS = ("correlate", "input_grad", "kernel_grad")


def correlate(x, w, geometry, precision):
    if x.dtype != jnp.float32:
        return shifted.correlate(x, w, geometry, precision)
    return _call("correlate", (x.shape[0], *geometry.out_size, x.shape[3]), x, w, geometry)


def input_grad(g, w, geometry, precision):
    if g.dtype != jnp.float32:
        return shifted.input_grad(g, w, geometry, precision)
    return _call("input_grad", (g.shape[0], *geometry.size, g.shape[3]), g, w, geometry)


def kernel_grad(x, g, geometry, precision):
    if x.dtype != jnp.float32:
        return shifted.kernel_grad(x, g, geometry, precision)
    return _call("kernel_grad", (geometry.kernel_size,) * 2 + x.shape[3:], x, g, geometry)


upsample, upsample_input_grad, upsample_kernel_grad = upsampling(correlate, input_grad, kernel_grad)


def _call(name, shape, a, b, geometry):
    if problem():
        raise RuntimeError(f"there is no native depthwise convolution: {problem()}")
    call = jax.ffi.ffi_call(
        _target(name), jax.ShapeDtypeStruct(shape, jnp.float32), vmap_method="sequential"
    )
    b = b.astype(jnp.float32)
    return call(a, b, stride=np.int64(geometry.stride), low=np.int64(geometry.low))


def _target(name):
    return f"nvae_jax_depthwise_{name}"


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
        return f"{shlex.join(error.cmd[:1])} cannot compile {SOURCE.name}: {lines[0]}"
    except OSError as error:
        return str(error)
    for name in TARGETS:
        function = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(_target(name), function, platform="cpu")
    return None


def _compiled(compiler):
    """The path of the shared library, which is kept for the next process."""
    identity = (SOURCE.read_text(), jaxlib.__version__, *compiler, *FLAGS, _processor())
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    path = _folder() / f"depthwise_{digest}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        path = Path(tempfile.mkdtemp()) / path.name
    command = [*compiler, *FLAGS, "-I", jax.ffi.include_dir(), str(SOURCE)]
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
