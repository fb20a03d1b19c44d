"""Ends a process with one line, where jax's runtime would abort it with its stack.

A thread of the runtime detects that another process is gone, whatever Python is doing. It accepts a
function to call instead of aborting, but fails to convert the argument of that function for Python
(jax 0.10), with a C++ exception, std::bad_cast, that nothing catches. So the line is printed by
C++'s handler of uncaught exceptions. With a runtime that lacks any of this, jax aborts as usual.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

FACTORY, ARGUMENT = "get_distributed_runtime_client", "missed_heartbeat_callback"
_HANDLER = ctypes.CFUNCTYPE(None)
_kept = []  # references to the handlers, which C++ calls


@contextlib.contextmanager
def replaced(end: Callable[[], Any]) -> Iterator[None]:
    """A context in which to call `jax.distributed.initialize`: a thread of the runtime will then
    call `end`, which ends the process, when another process is gone."""
    factory: Any = getattr(_jax, FACTORY, None)
    if ARGUMENT not in (getattr(factory, "__doc__", None) or "") or not _handle_terminate(end):
        yield
        return
    setattr(_jax, FACTORY, functools.partial(factory, **{ARGUMENT: lambda *_: end()}))
    try:
        yield
    finally:
        setattr(_jax, FACTORY, factory)


def is_bad_cast(error: BaseException) -> bool:
    """Whether `error` is the exception described above, raised by a call such as
    jax.distributed.initialize or shutdown in place of the runtime's message."""
    return isinstance(error, RuntimeError) and str(error) == "std::bad_cast"


def _handle_terminate(end):
    """Makes C++ call `end` for an uncaught std::bad_cast; returns whether that is possible."""
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
    """The name of a C++ type, the second of its two pointers."""
    if type_info is None:
        return None
    return ctypes.c_char_p.from_address(type_info + ctypes.sizeof(ctypes.c_void_p)).value
