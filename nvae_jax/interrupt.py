"""Ctrl-C and SIGTERM: as a flag that loops poll, to save before they stop, or as an exception.

In a cluster all processes stop together, at the same step: there a signal to one of them is for
all, and only those who ask come to know of it (`distributed.preempted`).
"""

import contextlib
import signal
from collections.abc import Iterable, Iterator
from typing import TypeVar

from nvae_jax import distributed

Item = TypeVar("Item")


class Interrupted(Exception):
    """The command was asked to stop, and leaves everything in order."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Interrupt:
    """A context in which the first SIGINT or SIGTERM is noted; a second one kills.

    In a cluster, which must have been joined by then, SIGTERM belongs to jax, and a second one does
    nothing more.

    Args:
      then: what is done about it, in a word for the user.
    """

    def __init__(self, then: str = "saving"):
        self._received, self._agreed, self._then = None, 0, then
        self._previous = {}

    def __enter__(self):
        mine = [signal.SIGINT] if distributed.is_cluster() else [signal.SIGINT, signal.SIGTERM]
        for number in mine:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stop(self) -> int:
        """The signal to stop for, or 0. In a cluster all processes call it equally often, and stop
        at the same call, because of a signal to any of them."""
        if not distributed.is_cluster():
            return self._received or 0
        if distributed.preempted():
            self._agreed = self._received or signal.SIGTERM
            if not self._received:
                self._say(signal.SIGTERM)
        return self._agreed

    def _handle(self, number, _frame):
        self._received = number
        for other, handler in self._previous.items():
            signal.signal(other, handler)
        self._say(number)
        _tell_cluster()

    def _say(self, number):
        print(f"received {signal.Signals(number).name}: {self._then}", flush=True)


def _tell_cluster():
    if distributed.is_cluster():
        signal.raise_signal(signal.SIGTERM)  # of which jax tells all processes


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """A context, or a function's decorator, in which SIGTERM raises `Interrupted`, as Ctrl-C raises
    KeyboardInterrupt: files that are being written are taken back on the way out. In a cluster
    that is joined in it, `interruptible` raises it, for either signal."""

    def end(number, frame):
        if distributed.is_cluster():  # where this is SIGINT: jax has the other one
            signal.signal(number, signal.SIG_DFL)
            _tell_cluster()
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)  # a second one kills
            raise _stopped(number)

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, end)}
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # not of a background job
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interruptible(items: Iterable[Item]) -> Iterator[Item]:
    """The `items`, as many in every process of a cluster, until one of these is to stop.

    Raises:
      Interrupted: in all processes ahead of the same item.
    """
    for item in items:
        if distributed.preempted():
            raise _stopped(signal.SIGTERM)
        yield item


def _stopped(number):
    return Interrupted(f"stopped by {signal.Signals(number).name}: no file is half-written", number)
