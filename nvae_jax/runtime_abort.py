"""One line at the end of a process that jax's runtime would abort with its stack.

A thread of the runtime finds out that another process is gone, wherever Python is. It can be given
a function to call instead of aborting, but fails to convert that function's argument for Python
(jax 0.10): a C++ exception, std::bad_cast, that nothing catches. So the line is said by the handler
that C++ calls of such ones. Where a runtime has none of this, it aborts as ever.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

FACTORY, ARGUMENT = "get_distributed_runtime_client", "missed_heartbeat_callback"
_HANDLER = ctypes.CFUNCTYPE(None)
_kept = []  # C++ knows the handler, Python must not forget it


@contextlib.contextmanager
def replaced(end: Callable[[], Any]) -> Iterator[None]:
    """A context to call `jax.distributed.initialize` in: `end`, which ends the process, is called
    by a thread of the runtime's when another process is gone."""
    factory: Any = getattr(_jax, FACTORY, None)
    if ARGUMENT not in (getattr(factory, "__doc__", None) or "") or not _handle_terminate(end):
        yield
        return
    setattr(_jax, FACTORY, functools.partial(factory, **{ARGUMENT: lambda *_: end()}))
    try:
        yield
    finally:
        setattr(_jax, FACTORY, factory)


def is_lost_for_words(error: BaseException) -> bool:
    """Whether `error` is the exception above: one that the runtime met in a call of ours, as of
    jax.distributed.initialize or shutdown, and which stands for what it wanted to say."""
    return isinstance(error, RuntimeError) and str(error) == "std::bad_cast"


def _handle_terminate(end):
    """Whether C++ can be told to call `end` of the exception above, and of no other."""
    try:
        library = ctypes.CDLL("libstdc++.so.6")
        set_handler = library._ZSt13set_terminatePFvvE
        exception_type = library.__cxa_current_exception_type
    except (OSError, AttributeError):
        return False
    set_handler.argtypes, set_handler.restype = [_HANDLER], ctypes.c_void_p
    exception_type.restype = ctypes.c_void_p

    def handle():
        if _name(exception_type()) == b"St8bad_cast":
            end()
        before()

    _kept.append(_HANDLER(handle))
    before = _HANDLER(set_handler(_kept[-1]))
    return True


def _name(type_info):
    """Of a C++ type: the second of its two pointers."""
    if type_info is None:
        return None
    return ctypes.c_char_p.from_address(type_info + ctypes.sizeof(ctypes.c_void_p)).value
