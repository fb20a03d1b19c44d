"""Batches for training and evaluation, with Grain.

Every batch is a function of (seed, step) alone: which examples, in which order, and every random
number spent on them. Steps of one epoch cut one permutation of the data set into global batches;
each host reads its own part of each. So the order is the same for any number of hosts, threads
and worker processes, and the state of an iterator is the number of steps it has taken.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Generator, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from nvae_jax.data import sources, transforms
from nvae_jax.data.faults import corrupt_images_error, warn_skipped
from nvae_jax.data.spec import CorruptError, DataError, DataSpec

Batch = dict[str, np.ndarray]

# More processes would only take memory; batches do not depend on their number.
WORKERS_A_CORE = 4

# With this many in a row unreadable, the fault is not that of single images.
_MOST_SKIPPED = 20
_REMEDY = "leave such images out with --config.data.skip_corrupt=true"


class _TrainExample:
    """Maps a position in the sequence of all epochs to an example.

    A class, so that worker processes can be sent one.
    """

    def __init__(self, images: sources.Images, spec: DataSpec, seed: int):
        self._images, self._spec, self._seed = images, spec, seed

    def __call__(self, position: int, index: int) -> dict[str, Any]:
        epoch = position // len(self._images)
        image, index, skipped = self._read(index)
        rng = transforms.example_rng(self._seed, transforms.TRAIN_STREAM, epoch, index)
        image = transforms.to_model(image, self._spec, rng, train=True)
        return {"image": image, "id": np.int64(index), "skipped": np.int64(skipped)}

    def _read(self, index: int) -> tuple[np.ndarray, int, int]:
        """The image, its index, and how many unreadable ones it stands in for.

        Batches must keep their size, so an unreadable image is replaced by the next one after it.
        """
        for skipped in range(_MOST_SKIPPED):
            try:
                return _read(self._images, index, self._spec), index, skipped
            except CorruptError as error:
                last = _skip_or_raise(error, self._spec)
            index = (index + 1) % len(self._images)
        raise DataError(f"{_MOST_SKIPPED} images in a row cannot be read, the last: {last}")


class _EvalExample:
    """Maps an index to an example, or past the end to one of zeros that the mask leaves out."""

    def __init__(self, images: sources.Images, spec: DataSpec, seed: int, length: int):
        self._images, self._spec, self._seed, self._length = images, spec, seed, length

    def __call__(self, index: int) -> dict[str, Any]:
        if index >= self._length:
            return self._blank(-1)
        try:
            image = _read(self._images, index, self._spec)
        except CorruptError as error:
            _skip_or_raise(error, self._spec)
            return self._blank(index)
        rng = transforms.example_rng(self._seed, transforms.EVAL_STREAM, 0, index)
        image = transforms.to_model(image, self._spec, rng, train=False)
        return {"image": image, "mask": np.True_, "id": np.int64(index)}

    def _blank(self, index: int) -> dict[str, Any]:
        image = np.zeros(self._spec.image_shape, np.float32)
        return {"image": image, "mask": np.False_, "id": np.int64(index)}


class TrainIterator(Iterator[Batch]):
    """Endless training batches of one host, with a state that any number of hosts can resume.

    Attributes:
      wait_seconds: time that callers of `next` have spent waiting for data so far.
      skipped: unreadable images left out so far (only with `skip_corrupt`), this host's alone.
    """

    def __init__(self, dataset: grain.MapDataset, spec: DataSpec, images: sources.Images):
        self._dataset, self._spec, self._images = dataset, spec, images
        self._num_examples = len(images)
        self._batches, self._step = None, 0
        self.wait_seconds, self.skipped = 0.0, 0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        if self._batches is None:
            # Random access: an iterator that starts at step t never reads what came before.
            self._batches = _prefetched(self._dataset[self._step :], self._spec)
        try:
            batch = next(self._batches)
        except CorruptError as error:
            raise corrupt_images_error(self._images, error, _REMEDY) from error
        self._step += 1
        self.skipped += int(batch.pop("skipped").sum())
        self.wait_seconds += time.perf_counter() - start
        return batch

    def get_state(self) -> dict[str, int]:
        """What a checkpoint keeps: plain numbers, the same on every host."""
        return {"step": self._step, "num_examples": self._num_examples}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a step. Raises DataError when the state is of a data set of another size."""
        if state["num_examples"] != self._num_examples:
            raise DataError(
                f"data set {self._spec.name!r} has {self._num_examples} training images, but this "
                f"run began with {state['num_examples']}: the data has changed"
            )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stops reading ahead. The iterator can still be used."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None


def train_iterator(
    spec: DataSpec, *, batch_size: int, seed: int, shard_index: int = 0, shard_count: int = 1
) -> TrainIterator:
    """Endless shuffled batches of the training split; every epoch in another order.

    Args:
      spec: the data set.
      batch_size: the global batch size; each of `shard_count` hosts gets its part.
      seed: with the step, decides the order and all augmentation.
      shard_index: this host.
      shard_count: number of hosts. Concatenating their batches gives the same global batch
        whatever their number. What is left of an epoch after full global batches is dropped.

    Returns:
      An iterator of {"image": float32 (b, H, W, C) in [0, 1], "id": int64 (b,)} with
      b = batch_size // shard_count; ids are indices into the training split.

    Raises:
      DataError: for faulty data, or a batch size that does not fit it or the hosts.
    """
    local_size = _local_batch_size(batch_size, shard_index, shard_count)
    images, spec = _open(spec, "train")
    length = len(images)
    if batch_size > length:
        raise DataError(
            f"train.batch_size={batch_size}: data set {spec.name!r} has {length} images"
        )
    # A sequence of its own per seed: Grain shuffles epoch e by seed + e.
    order_seed = int(np.random.SeedSequence((seed,)).generate_state(1)[0])
    dataset = (
        grain.MapDataset.range(length)
        .map_with_index(_TrainExample(images, spec, seed))
        .shuffle(seed=order_seed)
        .slice(slice(0, length - length % batch_size))
        .batch(local_size, drop_remainder=True)
        .slice(slice(shard_index, None, shard_count))
        .repeat()
    )
    return TrainIterator(dataset, spec, images)


def eval_batches(
    spec: DataSpec,
    *,
    split: str,
    batch_size: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    max_examples: int | None = None,
) -> Generator[Batch]:
    """Every example of a split exactly once, in order; the same number of batches on every host.

    Args: as for `train_iterator`, and
      max_examples: take only the first so many examples.

    Yields:
      {"image": float32 (b, H, W, C) in [0, 1], "mask": bool (b,), "id": int64 (b,)}. Examples
      that fill up the last batch are zeros with mask False and id -1; so are, with their own id,
      unreadable images under `skip_corrupt`, whose number is warned of at the end.
    """
    local_size = _local_batch_size(batch_size, shard_index, shard_count)
    images, spec = _open(spec, split)
    length = len(images) if max_examples is None else min(max_examples, len(images))
    if length < 1:
        raise DataError(f"max_examples must be at least 1, not {max_examples}")
    filled = -(-length // batch_size) * batch_size
    dataset = (
        grain.MapDataset.range(filled)
        .map(_EvalExample(images, spec, seed, length))
        .batch(local_size)
        .slice(slice(shard_index, None, shard_count))
    )
    return _counted(_prefetched(dataset, spec), spec, images)


def eval_batch_size(batch_size: int, max_examples: int | None) -> int:
    """`batch_size`, or less where so few examples are asked for: what fills a batch up costs as
    much as an example."""
    return batch_size if max_examples is None else min(batch_size, max(1, max_examples))


def num_examples(spec: DataSpec, split: str) -> int:
    """How many images a split has, counted in the data."""
    return len(sources.open_images(spec, split))


def describe(spec: DataSpec) -> DataSpec:
    """Fills in image_size and channels from the data where they are 0 ("from the data")."""
    if spec.image_size and spec.channels:
        return spec
    return _described(spec, sources.open_images(spec, "train"))


def resolve_split(spec: DataSpec, split: str) -> str:
    """The split to evaluate: "validation" where "test" is asked for and there is none."""
    return sources.resolve_split(spec, split)


def preview(spec: DataSpec, split: str, count: int) -> np.ndarray:
    """The first `count` images as evaluation sees them (binarised with seed 0): (count, H, W, C).

    There are fewer when the split has fewer.
    """
    here = dataclasses.replace(spec, workers=0)  # Too few to start processes for.
    batches = eval_batches(here, split=split, batch_size=count, seed=0, max_examples=count)
    batch = next(batches)
    batches.close()
    return batch["image"][batch["mask"]]


def _open(spec: DataSpec, split: str) -> tuple[sources.Images, DataSpec]:
    images = sources.open_images(spec, split)
    spec = _described(spec, images)
    transforms.check_shape(images.shape[1:], spec)
    return images, spec


def _described(spec: DataSpec, images: sources.Images) -> DataSpec:
    return dataclasses.replace(
        spec,
        image_size=spec.image_size or images.shape[1] + 2 * spec.padding,
        channels=spec.channels or images.shape[3],
    )


def _read(images: sources.Images, index: int, spec: DataSpec) -> np.ndarray:
    image = images[index]
    if image.shape != tuple(images.shape[1:]):
        raise CorruptError(
            f"data set {spec.name!r}: image {index} has shape {image.shape}, "
            f"where the others have {tuple(images.shape[1:])}"
        )
    return image


def _skip_or_raise(error: CorruptError, spec: DataSpec) -> CorruptError:
    if not spec.skip_corrupt:
        raise error
    warn_skipped(str(error))
    return error


def _counted(
    batches: grain.DatasetIterator, spec: DataSpec, images: sources.Images
) -> Generator[Batch]:
    skipped = 0
    try:
        for batch in batches:
            skipped += int((~batch["mask"] & (batch["id"] >= 0)).sum())
            yield batch
    except CorruptError as error:
        raise corrupt_images_error(images, error, _REMEDY) from error
    finally:
        batches.close()
    if skipped:
        logging.warning("data set %s: %d unreadable image(s) left out", spec.name, skipped)


def _local_batch_size(batch_size: int, shard_index: int, shard_count: int) -> int:
    if not 0 <= shard_index < shard_count:
        raise DataError(f"host {shard_index} of {shard_count}: there is no such host")
    if batch_size < 1 or batch_size % shard_count:
        raise DataError(f"batch size {batch_size} cannot be divided among {shard_count} host(s)")
    return batch_size // shard_count


def _prefetched(dataset: grain.MapDataset, spec: DataSpec) -> grain.DatasetIterator:
    options = grain.ReadOptions(num_threads=spec.threads, prefetch_buffer_size=spec.threads + 1)
    batches = dataset.to_iter_dataset(options)
    if spec.workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags; a notebook parses none.
            flags.FLAGS.mark_as_parsed()
        count = min(spec.workers, WORKERS_A_CORE * (os.cpu_count() or 1))
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=count))
    return iter(batches)
