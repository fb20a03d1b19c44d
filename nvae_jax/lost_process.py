"""How to tell that another process of this cluster is gone, and what to say and end with then."""

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

STATUS = 134  # as of jax's abort; launch scripts start again what ends with it
LINE = "error: another process of the cluster is gone: "
LOST_CONNECTION = re.compile(
    r"(Unable to initialize backend '\w+': )?"
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): "
)
# What else is called INTERNAL may be a fault of this process's own device.
_AMONG_PROCESSES = re.compile("Gloo|NCCL|[Tt]ask|[Bb]arrier|[Cc]onnection")
_PACKAGE = Path(__file__).parent
_OF_ALL = ("cli", "distributed", "interrupt", "lost_process", "saving")  # not what they serve
_ending = threading.Lock()


def is_reason_of(error: BaseException | None) -> bool:
    """Whether `error` says that another process of this cluster is gone, not that ours is wrong: by
    its own message, or by that of what caused it.

    A computation that ran into it fails later, where its result is first read, with a ValueError of
    jax's that only its message, the runtime's status, tells from one about a value. Orbax calls
    whatever ended a barrier a TimeoutError, from the runtime's own error.
    """
    if error is None or not jax.distributed.is_initialized():
        return False
    return _says_so(error) or is_reason_of(error.__cause__)


def describe(error: BaseException, line: str) -> str:
    """The line to end with because of `error`, which `line` tells of."""
    if runtime_abort.is_lost_for_words(error):
        line = "its connection is, or it has been silent for too long"
    return f"{LINE}{line}; this one was in {place(error)}"


def _says_so(error):
    if runtime_abort.is_lost_for_words(error):
        return True
    text = str(error)
    own = isinstance(error, RuntimeError) and text.startswith("INTERNAL: ")
    known = LOST_CONNECTION.match(text) is not None
    return known and (not own or _AMONG_PROCESSES.search(text) is not None)


def end(line: str) -> NoReturn:
    """Ends this process at once, from any thread, whatever the others do; where several call it,
    the first one's `line` is the only one."""
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # the end, which is near
    with contextlib.suppress(OSError):  # nobody may be reading
        os.write(2, f"{line}\n".encode())
    os._exit(STATUS)


@contextlib.contextmanager
def limit(seconds: float, line: str) -> Iterator[None]:
    """A context that ends this process with `line` where it takes longer, stuck outside Python or
    not."""
    timer = threading.Timer(seconds, end, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def place(error: BaseException | None = None) -> str:
    """Where in the package this process was, as "module.function": when it met `error`, or now. So
    it says what the process did, or waited for."""
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
