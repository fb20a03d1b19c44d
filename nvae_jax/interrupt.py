"""Ctrl-C and SIGTERM: as a flag that loops poll, to save before they stop, or as an exception."""

import contextlib
import signal
from collections.abc import Iterator


class Interrupted(Exception):
    """The command was asked to stop, and leaves everything in order."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Interrupt:
    """A context in which the first SIGINT or SIGTERM sets `received`; a second one kills.

    Args:
      then: what is done about it, in a word for the user.
    """

    def __init__(self, then: str = "saving"):
        self.received, self._then = None, then
        self._previous = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        self.received = number
        for other, handler in self._previous.items():
            signal.signal(other, handler)
        print(f"received {signal.Signals(number).name}: {self._then}", flush=True)


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """A context, or a function's decorator, in which SIGTERM raises `Interrupted`, as Ctrl-C raises
    KeyboardInterrupt: files that are being written are taken back on the way out."""

    def end(number, _frame):
        signal.signal(number, signal.SIG_DFL)  # a second one kills
        raise Interrupted("stopped by SIGTERM: no file is half-written", number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
