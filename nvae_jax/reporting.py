"""What a person sees of a run: metric rows, TensorBoard, image grids, progress."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nvae_jax import distributed, files, pictures, run_directory, tensorboard


def say(line):
    """Prints a line, on the first process only."""
    if distributed.is_primary():
        print(line, flush=True)


class Silent:
    """The writer and progress of every process but the first."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def scalars(self, step, values):
        """Writes nothing."""

    def images(self, step, name, images):
        """Writes nothing."""

    def advance(self, step):
        """Shows nothing."""

    def report(self, step, row):
        """Shows nothing."""


def metric_writer(workdir, step=0):
    """A `MetricWriter` on the first process, a silent one on the others."""
    return MetricWriter(workdir, step) if distributed.is_primary() else Silent()


def progress(start, total, batch_size):
    """A `Progress` on the first process, a silent one on the others."""
    return Progress(start, total, batch_size) if distributed.is_primary() else Silent()


class MetricWriter:
    """Writes rows of scalars to `metrics.jsonl` and TensorBoard, and pictures to `samples/`.

    Args:
      workdir: the run directory.
      step: where the run starts or resumes; rows after it, of a run that was cut off before its
        next checkpoint, are dropped: the resumed run writes them again.
    """

    def __init__(self, workdir, step=0):
        self._workdir = Path(workdir)
        self._path = self._workdir / run_directory.METRICS
        if self._path.exists():
            run_directory.write_text(self._path, _rows_until(self._path, step))
        self._board = tensorboard.Board(workdir, step)

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        # With another error under way, that one is told.
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self._board.close()

    def scalars(self, step, values):
        """One row: {name: number}."""
        with files.named(self._path), open(self._path, "a") as file:
            file.write(files.to_json({"step": step, **values}) + "\n")
        self._board.scalars(step, values)

    def images(self, step, name, images):
        """A grid of (N, H, W, C) images in [0, 1], as `samples/step_NNNNNNNN_NAME.png`."""
        grid = pictures.image_grid(pictures.to_uint8(images))
        path = self._workdir / "samples" / f"step_{step:08d}_{name}.png"
        pictures.save_png(path, grid, enlarge=True)
        self._board.image(step, name, grid)


def _rows_until(path, step):
    """The file's complete rows up to `step`."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            continue  # the row that a crash cut in two
    return "".join(kept)


def train_row(metrics, images_per_second, wait_fraction):
    """Names the train step's metrics; KLs by group get a column each."""
    row = {f"train/{k}": float(v) for k, v in metrics.items() if np.ndim(v) == 0}
    for name in ("kl_group", "balance"):
        row.update({f"train/{name}_{i:02d}": float(v) for i, v in enumerate(metrics[name])})
    row["train/images_per_second"] = images_per_second
    row["train/data_wait_fraction"] = wait_fraction
    return row


class Progress:
    """A bar with images per second and time left on a terminal, plain lines elsewhere."""

    def __init__(self, start, total, batch_size):
        self._total, self._batch_size, self._bar = total, batch_size, None
        if sys.stderr.isatty():
            # Its own time left would count what the rows' rate does not: compiling, for one.
            shape = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
            self._bar = tqdm(total=total, initial=start, unit="step", bar_format=shape)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()

    def advance(self, step):
        """After every step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step, row):
        """At every row of metrics."""
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
