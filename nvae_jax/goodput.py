"""Goodput: the fraction of a run's wall time, over all its starts, spent on training steps.

A run records each of its starts, and its end, in `starts.jsonl`. All time from one start to the
next counts as the run's wall time, except the time between its end and an extension. The time spent
on earlier steps is read from the run's metrics. Their rows after the step that a run resumes from
are deleted, so steps that had to be repeated count once.
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

from nvae_jax import files, processes, run_directory

STARTS = "starts.jsonl"
START, END = "start", "end"


class Goodput:
    """Computes a run's goodput, beginning at one of its starts. Only the first process writes.

    Args:
      workdir: the run directory.
      step: step that the run starts or resumes at.
      since: `time.monotonic()` at this start.

    Attributes:
      training_seconds: seconds spent on the steps before this start, read from the metrics.
    """

    def __init__(self, workdir: Path, step: int, since: float):
        self._workdir, self._since = workdir, since
        begin = time.time() - (time.monotonic() - since)
        primary = processes.is_primary()
        self.training_seconds = _training_seconds(workdir, step) if primary else 0.0
        rows = _rows(workdir / STARTS) if primary else []
        rows = [row for row in rows if isinstance(row.get("time"), float) and "event" in row]
        _warn_of_clock(rows, begin)
        rows.append(self._record(step, START, begin))
        # The clocks of different hosts may disagree; wall time is at least the time of the steps.
        self._before = max(wall_seconds(rows), self.training_seconds)

    def __call__(self, training_seconds: float) -> float:
        """The goodput so far, in [0, 1].

        Args:
          training_seconds: seconds spent on training steps over all starts.
        """
        elapsed = self._before + time.monotonic() - self._since
        return training_seconds / max(elapsed, training_seconds, 1e-9)

    def end(self, step: int) -> None:
        """Records that the run is finished; errors in writing are ignored."""
        with contextlib.suppress(OSError):
            self._record(step, END, time.time())

    def _record(self, step, event, seconds):
        row = {
            "event": event,
            "step": step,
            "time": seconds,
            "host": socket.gethostname(),
            "processes": jax.process_count(),
            "devices": jax.device_count(),
        }
        if processes.is_primary():
            lines = map(files.to_json, [*_rows(self._workdir / STARTS), row])
            text = "".join(f"{line}\n" for line in lines)
            run_directory.write_text(self._workdir / STARTS, text)
        return row


def wall_seconds(rows: list[dict[str, Any]]) -> float:
    """Seconds from the first row of `starts.jsonl` to the last, without the time after an end.

    If time goes backward from one row to the next, as it can between hosts, that counts as 0.
    """
    pairs = itertools.pairwise(rows)
    return sum(max(b["time"] - a["time"], 0.0) for a, b in pairs if a["event"] != END)


def _training_seconds(workdir, step):
    """Seconds spent on the steps up to `step`; steps after the last row are estimated from it."""
    for row in reversed(_rows(workdir / run_directory.METRICS)):
        with contextlib.suppress(KeyError, TypeError):  # a row of an evaluation, or damaged
            mean = row["train/step_seconds"] - row["train/data_wait_seconds"]
            if row["step"] <= step:
                return row["train/training_seconds"] + (step - row["step"]) * mean
    return 0.0


def _rows(path):
    """The objects in a file with one JSON object per line; unreadable lines are skipped."""
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
