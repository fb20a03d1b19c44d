"""Reads a run's metrics over its steps from metrics.jsonl."""

import json
import re
from pathlib import Path

import numpy as np

from nvae_jax import loggers, paths, run_directory, schema

Series = tuple[np.ndarray, np.ndarray]  # steps and values, both (N,)


def read(workdir: str | Path, last_step: int = schema.LARGEST_INT) -> dict[str, Series]:
    """Reads every metric of a run as {name: (steps, values)}.

    The names and units are in docs/metrics.md. Without metrics the result is {}.

    Args:
      workdir: the run directory.
      last_step: rows of later steps are ignored.
    """
    path = paths.parse(workdir) / run_directory.METRICS
    text = loggers.rows_until(path, last_step) if path.is_file() else ""
    columns: dict[str, list[tuple[int, float]]] = {}
    for row in map(json.loads, text.splitlines()):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):  # null stands for NaN
                columns.setdefault(name, []).append((row["step"], value))
    return {name: _series(pairs) for name, pairs in columns.items()}


def _series(pairs):
    steps, values = zip(*pairs, strict=True)
    return np.array(steps), np.array(values, np.float64)


def numbered(history: dict[str, Series], name: str) -> list[Series]:
    """The metrics NAME_00, NAME_01, ... in order of their numbers."""
    names = [key for key in history if re.fullmatch(rf"{re.escape(name)}_\d+", key)]
    return [history[key] for key in sorted(names, key=lambda key: int(key.rpartition("_")[2]))]
