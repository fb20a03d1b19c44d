"""Progress bars and the timing of training steps."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from tqdm import tqdm

SECONDS = 30.0  # between two lines


def bar(
    what: str, iterable: Iterable | None = None, *, unit: str, total: int | None = None
) -> tqdm:
    """Makes a progress bar on a terminal. Elsewhere it prints a line on stderr every `SECONDS`,
    and none about shorter work. Only the first process shows anything.

    Args:
      what: the activity in one word, such as "sampling".
      iterable: iterable to wrap; None requires calls of `update`.
      unit: name of one item.
      total: number of items; None uses the iterable's length, if it has one.
    """
    primary = not jax.distributed.is_initialized() or jax.process_index() == 0
    kind = tqdm if sys.stderr.isatty() else _Lines
    return kind(iterable, desc=what, unit=unit, total=total, disable=not primary)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A context for one long call, such as a compilation.

    Prints that it begins, and every `SECONDS` how long it has taken so far. Only the first process
    prints.
    """
    if jax.process_index() != 0:
        yield
        return
    print(f"{what} ...", flush=True)
    done, begin = threading.Event(), time.monotonic()

    def print_elapsed():
        while not done.wait(SECONDS):
            print(f"{what}: {time.monotonic() - begin:.0f} s so far", file=sys.stderr, flush=True)

    thread = threading.Thread(target=print_elapsed, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class _Lines(tqdm):
    def __init__(self, *args, **options):
        # With `miniters=0` every iteration checks the time, because one can take minutes.
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
        """Prints a line, unless tqdm only wants to clear its bar."""
        del pos
        if msg is None:
            print(self, file=sys.stderr, flush=True)


class Clock:
    """Measures the speed of training between two rows of metrics.

    Time spent on anything but training steps is measured separately.

    Args:
      step: number of steps done.
      data: the data iterator, with the attribute `wait_seconds`.
      training_seconds: seconds spent on earlier steps.
    """

    def __init__(self, step: int, data: Any, training_seconds: float = 0.0):
        self._data, self._before = data, training_seconds
        self._saving, self._compiled = 0.0, 0.0
        self._mark(step)

    def _mark(self, step):
        self._step, self._time, self._wait = step, time.perf_counter(), self._data.wait_seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time is not counted as training time."""
        begin = time.perf_counter()
        yield
        self._time += time.perf_counter() - begin

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """A context, inside `paused`, whose time is counted as time for checkpoints."""
        begin = time.perf_counter()
        yield
        self._saving += time.perf_counter() - begin

    def training_seconds(self) -> float:
        """Seconds spent on all steps so far, without waiting for data."""
        wait = self._data.wait_seconds - self._wait
        return self._before + max(time.perf_counter() - self._time - wait, 0.0)

    def lap(self, step: int, batch_size: int) -> dict[str, float]:
        """Returns {name: number} for the time since the last call; see docs/metrics.md."""
        seconds = max(time.perf_counter() - self._time, 1e-9)
        wait, steps = self._data.wait_seconds - self._wait, max(step - self._step, 1)
        row = {
            "images_per_second": (step - self._step) * batch_size / seconds,
            "data_wait_fraction": wait / seconds,
            "step_seconds": seconds / steps,
            "data_wait_seconds": wait / steps,
            "training_seconds": self.training_seconds(),
            "checkpoint_seconds": self._saving,
            "compile_seconds": compile_seconds() - self._compiled,
        }
        self._before, self._saving = row["training_seconds"], 0.0
        self._compiled = compile_seconds()
        self._mark(step)
        return row


_compiling = [0.0]  # seconds
_PHASES = ("/jax/core/compile/backend_compile", "/jax/core/compile/jaxpr_to_mlir")


def _add_compilation(event, duration_secs, **_):
    if event.startswith(_PHASES):
        _compiling[0] += duration_secs


jax.monitoring.register_event_duration_secs_listener(_add_compilation)


def compile_seconds() -> float:
    """Seconds that this process has spent on lowering and compiling programs, or on reading
    compiled ones from the cache."""
    return _compiling[0]
