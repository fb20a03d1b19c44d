"""Goodput: the share of a run's wall time, over all its starts, that went into training steps.

A run notes its starts, and its end, in `starts.jsonl`. Time between a start and the next one is the
run's, whatever stopped it; not so what passes between its end and an extension. How long the steps
took that are behind it, a start finds in the run's rows of metrics, which are cut where it resumes:
steps that were lost do not count.
"""

import contextlib
import itertools
import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import jax

from nvae_jax import distributed, files, run_directory

STARTS = "starts.jsonl"
START, END = "start", "end"


class Goodput:
    """A run's goodput, from one of its starts on. Only the first process writes.

    Args:
      workdir: the run directory.
      step: where it starts.
      since: `time.monotonic()` when this start began.

    Attributes:
      training_seconds: that the steps before it took, as rows of metrics tell.
    """

    def __init__(self, workdir: Path, step: int, since: float):
        self._workdir, self._since = workdir, since
        begin = time.time() - (time.monotonic() - since)
        primary = distributed.is_primary()
        self.training_seconds = _training_seconds(workdir, step) if primary else 0.0
        rows = _rows(workdir / STARTS) if primary else []
        rows = [row for row in rows if isinstance(row.get("time"), float) and "event" in row]
        _warn_of_clock(rows, begin)
        rows.append(self._note(step, START, begin))
        # What lies before can be no shorter than the steps: clocks of other hosts noted it.
        self._before = max(wall_seconds(rows), self.training_seconds)

    def __call__(self, training_seconds: float) -> float:
        """The share by now, after steps that took `training_seconds`, over all starts."""
        elapsed = self._before + time.monotonic() - self._since
        return training_seconds / max(elapsed, training_seconds, 1e-9)

    def end(self, step: int) -> None:
        """Notes that the run is finished, if it can: all else of it is saved by then."""
        with contextlib.suppress(OSError):
            self._note(step, END, time.time())

    def _note(self, step, event, seconds):
        row = {
            "event": event,
            "step": step,
            "time": seconds,
            "host": socket.gethostname(),
            "processes": jax.process_count(),
            "devices": jax.device_count(),
        }
        if distributed.is_primary():
            lines = map(files.to_json, [*_rows(self._workdir / STARTS), row])
            text = "".join(f"{line}\n" for line in lines)
            run_directory.write_text(self._workdir / STARTS, text)
        return row


def wall_seconds(rows: list[dict[str, Any]]) -> float:
    """The time from the first row of `starts.jsonl` to the last, without what came after an end. A
    clock that goes backward, as that of another host may, stands still."""
    pairs = itertools.pairwise(rows)
    return sum(max(b["time"] - a["time"], 0.0) for a, b in pairs if a["event"] != END)


def _training_seconds(workdir, step):
    """What the steps up to `step` took; those after the last row, as much as those before it."""
    for row in reversed(_rows(workdir / run_directory.METRICS)):
        with contextlib.suppress(KeyError, TypeError):  # a row of an evaluation, or a damaged one
            mean = row["train/step_seconds"] - row["train/data_wait_seconds"]
            if row["step"] <= step:
                return row["train/training_seconds"] + (step - row["step"]) * mean
    return 0.0


def _rows(path):
    """The objects in a file of lines of JSON, but for lines that cannot be read."""
    rows = []
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _warn_of_clock(rows, begin):
    last = max(rows, key=lambda row: row["time"], default=None)
    if last and last["time"] > begin + 1:
        print(
            f"warning: the clock of {socket.gethostname()} is at least {last['time'] - begin:.0f} s"
            f" behind that of {last.get('host')}, where this run was before: train/goodput does "
            "not count that time",
            file=sys.stderr,
            flush=True,
        )
