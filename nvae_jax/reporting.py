"""What a person sees of a run: metric rows, TensorBoard, image grids, progress."""

import json
import sys
import time
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from nvae_jax import distributed, run_directory

GREY = 128


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
        self._path = self._workdir / "metrics.jsonl"
        if self._path.exists():
            run_directory.write_text(self._path, _rows_until(self._path, step))
        self._file = open(self._path, "a")
        self._board = SummaryWriter(str(workdir), purge_step=step + 1 if step else None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        self._board.close()

    def scalars(self, step, values):
        """One row: {name: number}."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def images(self, step, name, images):
        """A grid of (N, H, W, C) images in [0, 1], as `samples/step_NNNNNNNN_NAME.png`."""
        grid = image_grid(to_uint8(images))
        save_png(self._workdir / "samples" / f"step_{step:08d}_{name}.png", grid)
        self._board.add_image(name, grid, step, dataformats="HWC")


def _rows_until(path, step):
    """The file's complete rows up to `step`."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the row that a crash cut in two
        if row.get("step", 0) <= step:
            kept.append(line + "\n")
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
        self._total, self._batch_size = total, batch_size
        self._begun, self._start = time.perf_counter(), start
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=start, unit="step") if on_terminal else None

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
        if self._bar is not None:
            self._bar.set_postfix_str(f"{bound}, {rate:.0f} images/s")
            return
        left = (self._total - step) * self._batch_size / max(rate, 1e-9)
        print(
            f"step {step}/{self._total}  NELBO {bound}  loss {row['train/loss']:.2f}  "
            f"{rate:.0f} images/s  {left / 60:.1f} min left",
            flush=True,
        )


def to_uint8(images):
    """Images in [0, 1] as uint8, rounded."""
    return np.round(np.clip(np.asarray(images, np.float32), 0, 1) * 255).astype(np.uint8)


def image_grid(images, columns=None):
    """Lays out uint8 images (N, H, W, C) row by row, as (rows·(H+1), columns·(W+1), 3).

    `columns` defaults to a grid as square as N allows; missing places stay grey, and so does the
    line between neighbours.
    """
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    blanks = np.full((-len(images) % columns, *images.shape[1:]), GREY, np.uint8)
    images = np.concatenate([images, blanks])
    gutter = ((0, 0), (0, 1), (0, 1), (0, 0))
    images = np.pad(images, gutter, constant_values=GREY)
    grid = rearrange(images, "(r c) h w d -> (r h) (c w) d", c=columns)
    return np.repeat(grid, 3, axis=-1) if grid.shape[-1] == 1 else grid


def pair_rows(above, below):
    """Interleaves two (N, H, W, C) sets so that in a square grid each row of the first stands
    over its row of the second."""
    above, below = np.asarray(above), np.asarray(below)
    columns = int(np.ceil(np.sqrt(2 * len(above))))
    parts = [a[i : i + columns] for i in range(0, len(above), columns) for a in (above, below)]
    return np.concatenate(parts)


def save_png(path, image):
    """Writes a uint8 (H, W, 3) image; small ones enlarged, so that a person sees the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    factor = max(1, 512 // max(image.shape[:2]))
    image = image.repeat(factor, 0).repeat(factor, 1)
    Image.fromarray(image).save(path)
