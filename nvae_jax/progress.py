"""How far long work has come, and how fast it is."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from tqdm import tqdm

SECONDS = 30.0  # from one line to the next


def bar(
    what: str, iterable: Iterable | None = None, *, unit: str, total: int | None = None
) -> tqdm:
    """A `tqdm` on a terminal; elsewhere one that prints a line on stderr every `SECONDS` at most,
    and none about work that ends sooner. Silent in every process but the first.

    Args:
      what: is being done, in a word.
      iterable: to be wrapped; None: call `update`.
      unit: of what is counted.
      total: how many; None takes the iterable's length, if it has one.
    """
    primary = not jax.distributed.is_initialized() or jax.process_index() == 0
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(iterable, desc=what, unit=unit, total=total, disable=not primary)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A context of one long call, such as a compilation: prints that it begins, and every `SECONDS`
    for how long it has gone on. Silent in every process but the first."""
    if jax.process_index() != 0:
        yield
        return
    print(f"{what} ...", flush=True)
    done, begin = threading.Event(), time.monotonic()

    def say():
        while not done.wait(SECONDS):
            print(f"{what}: {time.monotonic() - begin:.0f} s so far", file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Lines(tqdm):
    def __init__(self, *args, **options):
        # Zero iterations between two looks at the clock: single ones may take minutes.
        super().__init__(
            *args,
            **options,
            bar_format="{desc}: {unit} {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left",
            mininterval=SECONDS,
            delay=SECONDS,
            miniters=0,
            leave=False,
        )

    def display(self, msg=None, pos=None):
        """Prints the line; nothing where tqdm would clear its bar."""
        del pos
        if msg is None:
            print(self, file=sys.stderr, flush=True)


class Clock:
    """The speed of training between two rows of metrics, not counting what else is done.

    Args:
      step: the last that is done.
      data: an iterator with `wait_seconds`.
    """

    def __init__(self, step: int, data: Any):
        self._data = data
        self._mark(step)

    def _mark(self, step):
        self._step, self._time, self._wait = step, time.perf_counter(), self._data.wait_seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        begin = time.perf_counter()
        yield
        self._time += time.perf_counter() - begin

    def lap(self, step: int, batch_size: int) -> tuple[float, float]:
        """(images per second, fraction of the time spent waiting for data) since the last one."""
        seconds = max(time.perf_counter() - self._time, 1e-9)
        rate = (step - self._step) * batch_size / seconds
        wait = (self._data.wait_seconds - self._wait) / seconds
        self._mark(step)
        return rate, wait
