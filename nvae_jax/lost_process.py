"""Recognises errors that mean that another process of the cluster is gone."""

import contextlib
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import jax

from nvae_jax import runtime_abort

STATUS = 134  # like an abort of jax; launch scripts restart after it
LINE = "error: another process of the cluster is gone: "
SILENT = "its connection is, or it has been silent for"
LOST_CONNECTION = re.compile(
    r"(Unable to initialize backend '\w+': )?"
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): "
)
# Other errors called INTERNAL can be faults of this process's own device.
_AMONG_PROCESSES = re.compile("Gloo|NCCL|[Tt]ask|[Bb]arrier|[Cc]onnection")
_PACKAGE = Path(__file__).parent
# Files that are never named as the place.
_OF_ALL = ("cli", "distributed", "interrupt", "lost_process", "processes", "saving")
_ending = threading.Lock()


def is_reason_of(error: BaseException | None) -> bool:
    """Whether `error`, or its cause, means that another process of the cluster is gone.

    A computation that is affected fails later, when its result is first read, with a ValueError of
    jax. Only the message, which is the runtime's status, distinguishes it from other ones. Orbax
    raises a TimeoutError, caused by the runtime's error, for any failure of a barrier.
    """
    if error is None or not jax.distributed.is_initialized():
        return False
    return _says_so(error) or is_reason_of(error.__cause__)


def describe(line: str, error: BaseException | None = None) -> str:
    """The line to print before this process ends: `line`, and where it was, when `error` was raised
    or now."""
    if error is not None and runtime_abort.is_bad_cast(error):
        line = f"{SILENT} too long"
    return f"{LINE}{line}; this one was in {place(error)}"


def _says_so(error):
    if runtime_abort.is_bad_cast(error):
        return True
    text = str(error)
    own = isinstance(error, RuntimeError) and text.startswith("INTERNAL: ")
    known = LOST_CONNECTION.match(text) is not None
    return known and (not own or _AMONG_PROCESSES.search(text) is not None)


def end(line: str) -> NoReturn:
    """Prints `line` and ends this process at once, from any thread. If several threads call it,
    only the line of the first is printed."""
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is ending the process
    with contextlib.suppress(OSError):  # the pipe may be closed
        os.write(2, f"{line}\n".encode())
    os._exit(STATUS)


@contextlib.contextmanager
def limit(seconds: float, line: str) -> Iterator[None]:
    """A context that ends this process with `line` if it takes longer than `seconds`, even outside
    of Python."""
    timer = threading.Timer(seconds, end, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def place(error: BaseException | None = None) -> str:
    """Where in the package this process was, as "module.function": when `error` was raised, or now.
    It tells what the process was doing, or waiting for."""
    if error is None:
        main = sys._current_frames().get(threading.main_thread().ident or 0)
        frames = [frame for frame, _ in traceback.walk_stack(main)]
    else:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][::-1]
    for frame in frames:
        path = Path(frame.f_code.co_filename)
        if _PACKAGE in path.parents and path.stem not in _OF_ALL:
            return f"{path.stem}.{frame.f_code.co_name}"
    return "Python"
