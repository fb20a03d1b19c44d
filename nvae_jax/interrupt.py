"""Handles Ctrl-C and SIGTERM: either as a flag that a loop polls before saving and stopping, or as
an exception.

In a cluster a signal to one process stops all processes at the same step. They learn of it by
polling `distributed.preempted`.
"""

import contextlib
import signal
from collections.abc import Iterable, Iterator
from typing import TypeVar

from nvae_jax import distributed

Item = TypeVar("Item")


class Interrupted(Exception):
    """A command was stopped by a signal and has left its files in a consistent state."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Interrupt:
    """A context that records the first SIGINT or SIGTERM; a second signal kills the process.

    In a cluster, which must have been joined before, jax handles SIGTERM, and further SIGTERMs have
    no effect.

    Args:
      action: what the program does in response; printed as "received SIGINT: ACTION".
    """

    def __init__(self, action: str = "saving"):
        self._received, self._agreed, self._action = None, 0, action
        self._previous = {}

    def __enter__(self):
        handled = [signal.SIGINT] if distributed.is_cluster() else [signal.SIGINT, signal.SIGTERM]
        for number in handled:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stop(self) -> int:
        """Returns the signal because of which to stop, or 0.

        In a cluster all processes must call it equally often. After a signal to any of them, it
        returns that signal in all processes from the same call on.
        """
        if not distributed.is_cluster():
            return self._received or 0
        if distributed.preempted():
            self._agreed = self._received or signal.SIGTERM
            if not self._received:
                self._announce(signal.SIGTERM)
        return self._agreed

    def _handle(self, number, _frame):
        self._received = number
        for other, handler in self._previous.items():
            signal.signal(other, handler)
        self._announce(number)
        _tell_cluster()

    def _announce(self, number):
        print(f"received {signal.Signals(number).name}: {self._action}", flush=True)


def _tell_cluster():
    if distributed.is_cluster():
        signal.raise_signal(signal.SIGTERM)  # jax tells all processes of it


@contextlib.contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """A context or decorator in which SIGTERM raises `Interrupted`, like Ctrl-C raises
    KeyboardInterrupt, so that partly written files are removed on the way out.

    If the process joins a cluster inside the context, `interruptible` raises `Interrupted` for
    either signal instead.
    """

    def handle(number, frame):
        if distributed.is_cluster():  # only SIGINT arrives here: jax handles SIGTERM
            signal.signal(number, signal.SIG_DFL)
            _tell_cluster()
        elif number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)  # a second signal kills
            raise _stopped(number)

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, handle)}
    # In a background job SIGINT is ignored, and stays so.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def interruptible(items: Iterable[Item]) -> Iterator[Item]:
    """Iterates over `items` until a process of the cluster receives a signal.

    Every process must have the same number of items.

    Raises:
      Interrupted: in all processes before the same item.
    """
    for item in items:
        if distributed.preempted():
            raise _stopped(signal.SIGTERM)
        yield item


def _stopped(number):
    return Interrupted(f"stopped by {signal.Signals(number).name}: no file is half-written", number)
