"""The kernels' shared library: compiled once, kept, and loaded only where nobody else can write.

A library runs with all the rights of who loads it. So the folder that it is kept in, and the file,
have to belong to the user or to root and be writable by nobody else, and the file's name has the
digest of its content: loading one that is cut short would end the process.
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
PATIENCE = 60  # seconds that a compiler gets for a file, which takes it some 10
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp-simd", "-fPIC"),
    "-ffp-contract=fast",  # a product and a sum are one instruction, also where Clang compiles
    "-fno-trapping-math",  # else divisions in loops are done entry by entry
)


def load(compiler: Sequence[str]) -> ctypes.CDLL:
    """The library as a `ctypes.CDLL`, compiled by `compiler` (a list: its command) where it is not
    kept yet. Where no folder can keep it, it is compiled for this process alone.

    Raises:
      OSError: it cannot be written or loaded.
      subprocess.CalledProcessError: it cannot be compiled.
      subprocess.TimeoutExpired: the compiler hangs.
    """
    identity = _identity(compiler)
    for folder in filter(_is_private, _folders()):
        with contextlib.suppress(OSError):  # of a folder that cannot be written to, or is full
            return ctypes.CDLL(str(_kept_or_compiled(folder, identity, compiler)))
    with tempfile.TemporaryDirectory() as folder:
        logging.warning("compiling the C++ kernels for this process alone: no folder can keep them")
        return ctypes.CDLL(str(_compile(compiler, folder)))  # stays loaded without its file


def _folders():
    """Where the library may be kept: beside the programs that JAX keeps, or in the home folder."""
    options: Any = jax.config  # whose attributes checkers do not know
    beside, home = options.jax_compilation_cache_dir, files.cache_folder()
    roots = [Path(beside)] if beside and "://" not in beside else []
    return [root / "native" for root in (*roots, *([home] if home else []))]


def _is_private(folder):
    """Whether nobody but this user and root can write to `folder`, which is made where missing."""
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
    """How somebody else could have written what is at `path`, or None."""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to another user"
    if status.st_mode & 0o022:
        return f"others can write to {path} (chmod go-w takes that from them)"
    return None


def _kept_or_compiled(folder, identity, compiler):
    """The path of the library in `folder`."""
    kept = _kept(folder, identity)
    if kept:
        return kept
    # The processes of a machine begin together: one compiles, the others wait for it.
    with files.locked(folder / f"{identity}.lock"), tempfile.TemporaryDirectory() as scratch:
        kept = _kept(folder, identity)
        if kept:
            return kept
        for path in folder.glob(f"{identity}_*.so"):
            logging.warning("%s: compiling the C++ kernels anew", _problem(path))
            path.unlink()
        logging.info("compiling %s, once on this machine", FOLDER)
        compiled = _compile(compiler, scratch)
        path = folder / f"{identity}_{_digest(compiled)}.so"
        with files.atomic_write(path) as temporary:
            shutil.copyfile(compiled, temporary)
        return path


def _kept(folder, identity):
    """The library that is in `folder`, whole and nobody else's; None where there is none."""
    found = folder.glob(f"{identity}_*.so")
    return next((path for path in found if _problem(path) is None), None)


def _problem(path):
    """Why a library is not to be loaded, or None."""
    whole = path.stem.endswith(f"_{_digest(path)}")
    return _ownership_problem(path) if whole else f"{path} is damaged"


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(compiler, folder):
    """Compiles the library into `folder`; its path."""
    command = [*compiler, *FLAGS, "-isystem", jax.ffi.include_dir()]

    def run(*arguments):
        subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True, timeout=PATIENCE
        )

    library, objects = Path(folder) / "kernels.so", [f"{folder}/{name}.o" for name in SOURCES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = (str(FOLDER / name) for name in SOURCES)
        list(pool.map(lambda source, to: run("-c", source, "-o", to), sources, objects))
    run("-shared", *objects, "-o", str(library))
    return library


def _identity(compiler):
    """A name of what the library is made of, and for."""
    texts = [(FOLDER / name).read_text() for name in (*SOURCES, *HEADERS)]
    identity = "\n".join((*texts, metadata.version("jaxlib"), *compiler, *FLAGS, _processor()))
    return f"kernels_{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _processor():
    """What -march=native may mean on this machine: a home directory may serve several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kinds = ("model name", "flags", "CPU ", "Features")  # the latter two of ARM's
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
