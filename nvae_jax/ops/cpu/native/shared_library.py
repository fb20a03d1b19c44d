"""Compiles the kernels' shared library once per machine, caches it, and loads it.

A library runs with all the user's permissions. So the cache folder and the file must belong to the
user or to root and must not be writable by others. The file's name contains a hash of its content,
because loading a truncated library would crash the process.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
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
    "stacks.cc",
)
HEADERS = ("calls.h", "common.h", "depthwise.h", "vectors.h")
COMPILER_TIMEOUT = 60  # seconds per file, which usually takes about 10
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp-simd", "-fPIC"),
    "-ffp-contract=fast",  # lets Clang, too, use one instruction for a product and a sum
    "-fno-trapping-math",  # otherwise divisions in loops are not vectorised
)


def load(compiler: Sequence[str]) -> ctypes.CDLL:
    """Loads the library, after compiling it unless it is cached.

    If no cache folder can be used, it is compiled for this process only.

    Args:
      compiler: command of the C++ compiler, a list of words.

    Raises:
      OSError: if it cannot be written or loaded.
      subprocess.CalledProcessError: if it cannot be compiled.
      subprocess.TimeoutExpired: if the compiler hangs.
    """
    identity = _identity(compiler)
    for folder in filter(_is_private, _folders()):
        with contextlib.suppress(OSError):  # the folder cannot be written to, or the disk is full
            return ctypes.CDLL(str(_cached_or_compiled(folder, identity, compiler)))
    with tempfile.TemporaryDirectory() as folder:
        logging.warning("compiling the C++ kernels for this process only: no folder to cache them")
        return ctypes.CDLL(str(_compile(compiler, folder)))  # stays loaded without its file


def _folders():
    """The possible cache folders: next to JAX's compilation cache, and in the home folder."""
    options: Any = jax.config  # type checkers do not know its attributes
    cache, home = options.jax_compilation_cache_dir, files.cache_folder()
    roots = [Path(cache)] if cache and "://" not in cache else []
    return [root / "native" for root in (*roots, *([home] if home else []))]


def _is_private(folder):
    """Whether only this user and root can write to `folder`, which is created if necessary."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        problem = _ownership_problem(folder)
    except OSError:
        return False
    if problem:
        logging.warning("%s: the C++ kernels are not loaded from there", problem)
    return problem is None


def _ownership_problem(path):
    """Explains how another user could have written to `path`; None if that is impossible."""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to another user"
    if status.st_mode & 0o022:
        return f"others can write to {path} (run chmod go-w on it)"
    return None


def _cached_or_compiled(folder, identity, compiler):
    """The path of the library in `folder`, after compiling it if necessary."""
    cached = _cached(folder, identity)
    if cached:
        return cached
    # If several processes start at the same time, one compiles and the others wait for it.
    with files.locked(folder / f"{identity}.lock"), tempfile.TemporaryDirectory() as scratch:
        cached = _cached(folder, identity)
        if cached:
            return cached
        for path in folder.glob(f"{identity}_*.so"):
            logging.warning("%s: recompiling the C++ kernels", _problem(path))
            path.unlink()
        logging.info("compiling %s, once on this machine", FOLDER)
        compiled = _compile(compiler, scratch)
        path = folder / f"{identity}_{_digest(compiled)}.so"
        with files.atomic_write(path) as temporary:
            shutil.copyfile(compiled, temporary)
        return path


def _cached(folder, identity):
    """The path of a valid library in `folder`, or None."""
    found = folder.glob(f"{identity}_*.so")
    return next((path for path in found if _problem(path) is None), None)


def _problem(path):
    """Explains why a library must not be loaded; None if it can be."""
    whole = path.stem.endswith(f"_{_digest(path)}")
    return _ownership_problem(path) if whole else f"{path} is damaged"


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(compiler, folder):
    """Compiles the library into `folder` and returns its path."""
    command = [*compiler, *FLAGS, "-isystem", jax.ffi.include_dir()]

    def run(*arguments):
        subprocess.run(
            [*command, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=COMPILER_TIMEOUT,
        )

    library, objects = Path(folder) / "kernels.so", [f"{folder}/{name}.o" for name in SOURCES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = (str(FOLDER / name) for name in SOURCES)
        list(pool.map(lambda source, to: run("-c", source, "-o", to), sources, objects))
    run("-shared", *objects, "-o", str(library))
    return library


def _identity(compiler):
    """A name that identifies the sources, the compiler and the processor of a library."""
    texts = [(FOLDER / name).read_text() for name in (*SOURCES, *HEADERS)]
    identity = "\n".join((*texts, metadata.version("jaxlib"), *compiler, *FLAGS, _processor()))
    return f"kernels_{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _processor():
    """A description of the processor, which -march=native depends on: several kinds of machines can
    share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kinds = ("model name", "flags", "CPU ", "Features")  # the latter two on ARM
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
