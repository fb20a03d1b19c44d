"""Features of many images, saved in files of a thousand each, so that a stopped run can resume."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np

from nvae_jax import files, mirror, processes, progress
from nvae_jax.interrupt import interruptible
from nvae_jax.metrics import moments
from nvae_jax.metrics.features import Features
from nvae_jax.metrics.statistics import Statistics

PART = 1000  # images per file
PIECE = 50  # images whose features are computed at a time


class Parts:
    """Features of images, in one file per `PART` images.

    Args:
      folder: folder of the files.
      num: number of images in all files together.
    """

    def __init__(self, folder: Path, num: int):
        self._folder, self.num = folder, num

    def _path(self, start):
        return self._folder / f"{start:08d}.npy"

    def first_missing(self) -> int:
        """The number of the first image without features, the same on all hosts; `num` if there
        are all."""
        starts = range(0, self.num, PART)
        missing = next((s for s in starts if not self._path(s).exists()), self.num)
        return min(processes.all_gather(missing))

    def add(self, parts: Iterable[np.ndarray], features: Features, what: str) -> None:
        """Computes missing features. The processes of a cluster divide the parts among them.

        Args:
          parts: the images (B, H, W, C) of each part, from number `first_missing()` on.
          features: the function that computes features.
          what: description for the progress bar.
        """
        first = self.first_missing()
        with progress.bar(what, unit="image", total=self.num - first) as bar:
            for number, part in enumerate(interruptible(parts), first // PART):
                path = self._path(number * PART)
                if number % jax.process_count() == jax.process_index() and not path.exists():
                    _write(path, part, features)
                bar.update(len(part))
        processes.barrier(what)

    def statistics(self) -> Statistics:
        """Computes the statistics of all images, in the order of their numbers."""
        existing = [p for p in map(self._path, range(0, self.num, PART)) if p.exists()]
        parts = [np.load(mirror.local(path), mmap_mode="r") for path in existing]
        pooled = moments.pool(part for part in parts if len(part))
        return Statistics(pooled.count, pooled.mean, pooled.covariance, np.concatenate(parts))


def _write(path, images, features):
    pieces = [images[i : i + PIECE] for i in range(0, len(images), PIECE)]
    found = [features(piece) for piece in pieces] or [np.zeros((0, features.size), np.float32)]
    with files.atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.concatenate(found))


def regroup(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Regroups batches (B, H, W, C) of any sizes into batches of `PART`; the last is smaller."""
    pending = []
    for batch in batches:
        pending.append(batch)
        while sum(map(len, pending)) >= PART:
            joined = np.concatenate(pending)
            yield joined[:PART]
            pending = [joined[PART:]]
    if pending and sum(map(len, pending)):
        yield np.concatenate(pending)
