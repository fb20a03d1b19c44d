"""Keeps the memory that a step frees for the next one.

XLA's CPU client allocates what a program needs at each call. glibc gives large blocks back to the
system as soon as they are freed, and the system clears every page of them before it lends them
again: a quarter of a training step's time.
"""

import ctypes

import jax

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # as malloc.h numbers them


def keep_freed_memory() -> None:
    """Makes glibc's allocator keep what it has; does nothing where there is no glibc.

    More is then held than a step needs: glibc aligns a large block by cutting it from a larger one,
    and the next one of the same size does not fit the hole that it leaves.

    To be called ahead of the first computation.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not mallopt:
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    # Only the main thread's large blocks can be kept, so let it be the one that starts programs.
    # One arena for all threads would do too, but finding memory in what a large compilation leaves
    # behind takes so long that steps take twice their time.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def give_back_freed_memory() -> None:
    """Gives what is free just now back to the system, once; does nothing where there is no glibc.

    For after a compilation, which leaves several times what a small model's steps need, and now and
    then in a long run: what many threads free lies in holes of which each arena has its own, and
    `keep_freed_memory` would keep all of them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
