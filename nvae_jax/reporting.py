"""Shows the progress of training on the terminal, and makes rows of metrics."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from nvae_jax import processes

# Columns of a row that depend on timing; all others are the same in equal runs.
TIMES = tuple(
    f"train/{name}"
    for name in (
        "images_per_second",
        "data_wait_fraction",
        "step_seconds",
        "data_wait_seconds",
        "training_seconds",
        "checkpoint_seconds",
        "compile_seconds",
        "goodput",
    )
)


def log(line: str) -> None:
    """Prints a line, on the first process only."""
    if processes.is_primary():
        print(line, flush=True)


class Silent:
    """Shows no progress; used by every process but the first."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def advance(self, step: int) -> None:
        """Shows nothing."""

    def report(self, step: int, row: Mapping[str, Any]) -> None:
        """Shows nothing."""


def progress(start: int, total: int, batch_size: int) -> "Silent | Progress":
    """Makes a `Progress` on the first process and a `Silent` on the others."""
    return Progress(start, total, batch_size) if processes.is_primary() else Silent()


def train_row(metrics: Mapping[str, Any], timing: Mapping[str, float]) -> dict[str, Any]:
    """Makes a row of metrics from those of a train step and the timing of `progress.Clock`.

    Each latent group has columns of its own, such as `train/kl_group_00`.
    """
    row = {f"train/{k}": float(v) for k, v in metrics.items() if np.ndim(v) == 0}
    for name in ("kl_group", "balance"):
        row.update({f"train/{name}_{i:02d}": float(v) for i, v in enumerate(metrics[name])})
    return row | {f"train/{name}": value for name, value in timing.items()}


class Progress:
    """Shows training progress: a progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, start: int, total: int, batch_size: int):
        self._total, self._batch_size, self._bar = total, batch_size, None
        if sys.stderr.isatty():
            # tqdm's estimate of the time left would include the time for compiling.
            shape = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bar = tqdm(total=total, initial=start, unit="step", bar_format=shape)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def advance(self, step: int) -> None:
        """Advances the bar to a step; called after every step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, row: Mapping[str, Any]) -> None:
        """Shows NELBO, speed and time left; called with every row of metrics."""
        rate = row["train/images_per_second"]
        bound = f"{row['train/nelbo']:.2f} nats"
        left = f"{(self._total - step) * self._batch_size / max(rate, 1e-9) / 60:.1f} min left"
        if self._bar is not None:
            self._bar.set_postfix_str(f"{bound}, {rate:.0f} images/s, {left}")
            return
        print(
            f"step {step}/{self._total}  NELBO {bound}  loss {row['train/loss']:.2f}  "
            f"{rate:.0f} images/s  {left}",
            flush=True,
        )
