"""Ctrl-C and SIGTERM as a flag that loops poll, so that they can save before they stop."""

import signal


class Interrupted(Exception):
    """The run was asked to stop, and has saved what it had."""

    def __init__(self, message, signal_number):
        super().__init__(message)
        self.signal_number = signal_number


class Interrupt:
    """A context in which the first SIGINT or SIGTERM sets `received`; a second one kills."""

    def __init__(self):
        self.received = None
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
        print(f"received {signal.Signals(number).name}: saving", flush=True)
