"""Keeps memory that one training step frees for the next step.

XLA's CPU client allocates a program's buffers anew at each call. By default glibc returns large
blocks to the operating system as soon as they are freed, and the system clears every page before
handing it out again, which takes a quarter of a training step's time.
"""

import ctypes

import jax

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # as malloc.h numbers them


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory in the process. Does nothing on systems without glibc.

    Call it before the first computation. The process then keeps more memory than a step needs:
    glibc aligns a large block by cutting it out of a larger one, and once freed the remaining gap
    is too small for the next block of the same size.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not mallopt:
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    # glibc keeps large blocks of the main thread only, so programs must be started by that thread.
    # A single arena for all threads would work too, but searching the fragments that a large
    # compilation leaves in it makes steps twice as slow.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def release_freed_memory() -> None:
    """Returns currently free memory to the system once. Does nothing on systems without glibc.

    Call it after a compilation, which frees several times the memory that a small model's steps
    need, and from time to time in a long run: each thread's arena accumulates fragments, all of
    which `keep_freed_memory` would keep.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
