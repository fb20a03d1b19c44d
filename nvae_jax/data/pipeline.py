"""Batches for training and evaluation, with Grain.

Every training batch is a function of (seed, step): its examples, their order, and the random
numbers of augmentation and binarisation. Each epoch splits a permutation of the data set into
global batches, and each host reads its shard of each. Batches are therefore the same for any number
of hosts, threads and worker processes, and the state of an iterator is its step.
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

from nvae_jax.data import splits, transforms
from nvae_jax.data.faults import corrupt_images_error, warn_skipped
from nvae_jax.data.images import Images
from nvae_jax.data.spec import CorruptError, DataError, DataSpec

Batch = dict[str, np.ndarray]

# More worker processes would only use memory; batches do not depend on their number.
WORKERS_PER_CORE = 4

# If so many consecutive images cannot be read, the cause is not in single images.
_MAX_SKIPPED = 20
_REMEDY = "skip such images with --config.data.skip_corrupt=true"


class _TrainExample:
    """Maps a position in the sequence of all epochs to an example.

    It is a class, so that it can be pickled for worker processes.
    """

    def __init__(self, images: Images, spec: DataSpec, seed: int):
        self._images, self._spec, self._seed = images, spec, seed

    def __call__(self, position: int, index: int) -> dict[str, Any]:
        epoch = position // len(self._images)
        image, index, skipped = self._read(index)
        rng = transforms.example_rng(self._seed, transforms.TRAIN_STREAM, epoch, index)
        image = transforms.to_model(image, self._spec, rng, train=True)
        return {"image": image, "id": np.int64(index), "skipped": np.int64(skipped)}

    def _read(self, index: int) -> tuple[np.ndarray, int, int]:
        """Returns the image, its index, and the number of unreadable images it replaces.

        Batches must keep their size, so an unreadable image is replaced by the next one.
        """
        for skipped in range(_MAX_SKIPPED):
            try:
                return _read(self._images, index, self._spec), index, skipped
            except CorruptError as error:
                last = _skip_or_raise(error, self._spec)
            index = (index + 1) % len(self._images)
        raise DataError(f"{_MAX_SKIPPED} images in a row cannot be read, the last: {last}")


class _EvalExample:
    """Maps an index to an example; indices past the end give zeros with mask False."""

    def __init__(self, images: Images, spec: DataSpec, seed: int, length: int):
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
    """Endless training batches of one host, with a state that any number of hosts can resume from.

    Attributes:
      wait_seconds: seconds that calls of `next` have waited for data so far.
      skipped: number of unreadable images skipped on this host so far (only with `skip_corrupt`).
    """

    def __init__(self, dataset: grain.MapDataset, spec: DataSpec, images: Images):
        self._dataset, self._spec, self._images = dataset, spec, images
        self._num_examples = len(images)
        self._batches, self._step = None, 0
        self.wait_seconds, self.skipped = 0.0, 0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        if self._batches is None:
            # The data set has random access, so starting at step t reads no earlier batches.
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
        """The state that a checkpoint stores: numbers that are the same on every host."""
        return {"step": self._step, "num_examples": self._num_examples}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to the step of a state from `get_state`.

        Raises:
          DataError: if the number of training images has changed.
        """
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
    """Endless shuffled batches of the training split, in another order in every epoch.

    Args:
      spec: the data set.
      batch_size: the global batch size, which is divided among `shard_count` hosts.
      seed: determines, with the step, the order and all augmentation.
      shard_index: index of this host.
      shard_count: number of hosts. Concatenating their batches gives the same global batch for any
        number. Examples of an epoch that do not fill a global batch are dropped.

    Returns:
      an iterator of {"image": float32 (b, H, W, C) in [0, 1], "id": int64 (b,)} with
      b = batch_size // shard_count; ids are indices into the training split.

    Raises:
      DataError: if the data are faulty, or the batch size does not fit the data or the hosts.
    """
    local_size = _local_batch_size(batch_size, shard_index, shard_count)
    images, spec = _open(spec, "train")
    length = len(images)
    if batch_size > length:
        raise DataError(
            f"train.batch_size={batch_size}: data set {spec.name!r} has {length} images"
        )
    # Grain shuffles epoch e with seed + e, so neighbouring seeds must be mapped far apart.
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
    """Batches with every example of a split exactly once, in order.

    Args:
      spec: the data set.
      split: the split to read.
      batch_size: the global batch size, which is divided among `shard_count` hosts.
      seed: seed of binarisation.
      shard_index: index of this host.
      shard_count: number of hosts, all of which get the same number of batches.
      max_examples: number of examples to read, from the first; None reads all.

    Yields:
      {"image": float32 (b, H, W, C) in [0, 1], "mask": bool (b,), "id": int64 (b,)}. The last batch
      is filled up with zeros that have mask False and id -1. With `skip_corrupt`, unreadable images
      are zeros with mask False and their own id, and a warning at the end counts them.

    Raises:
      DataError: as `train_iterator`, or if `max_examples` is less than 1.
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
    return _count_skipped(_prefetched(dataset, spec), spec, images)


def eval_batch_size(batch_size: int, max_examples: int | None) -> int:
    """Reduces `batch_size` to `max_examples` if that is less, because padding a batch costs as much
    as real examples."""
    return batch_size if max_examples is None else min(batch_size, max(1, max_examples))


def num_examples(spec: DataSpec, split: str) -> int:
    """The number of images in a split, counted in the data."""
    return len(splits.open_images(spec, split))


def describe(spec: DataSpec) -> DataSpec:
    """Replaces an image_size or a number of channels of 0 by that of the data."""
    if spec.image_size and spec.channels:
        return spec
    return _described(spec, splits.open_images(spec, "train"))


def resolve_split(spec: DataSpec, split: str) -> str:
    """Returns the split to evaluate: "validation" instead of "test" if there is no test split."""
    return splits.resolve_split(spec, split)


def preview(spec: DataSpec, split: str, count: int) -> np.ndarray:
    """Reads the first `count` images of a split, or fewer if it has fewer, (N, H, W, C).

    They are prepared as for evaluation; binarisation uses seed 0.
    """
    spec = dataclasses.replace(spec, workers=0)  # not worth starting processes for few images
    batches = eval_batches(spec, split=split, batch_size=count, seed=0, max_examples=count)
    batch = next(batches)
    batches.close()
    return batch["image"][batch["mask"]]


def _open(spec: DataSpec, split: str) -> tuple[Images, DataSpec]:
    images = splits.open_images(spec, split)
    spec = _described(spec, images)
    transforms.check_shape(images.shape[1:], spec)
    return images, spec


def _described(spec: DataSpec, images: Images) -> DataSpec:
    return dataclasses.replace(
        spec,
        image_size=spec.image_size or images.shape[1] + 2 * spec.padding,
        channels=spec.channels or images.shape[3],
    )


def _read(images: Images, index: int, spec: DataSpec) -> np.ndarray:
    image = images[index]
    if image.shape != tuple(images.shape[1:]):
        raise CorruptError(
            f"data set {spec.name!r}: image {index} has shape {image.shape}, "
            f"but the others have {tuple(images.shape[1:])}"
        )
    return image


def _skip_or_raise(error: CorruptError, spec: DataSpec) -> CorruptError:
    if not spec.skip_corrupt:
        raise error
    warn_skipped(str(error))
    return error


def _count_skipped(
    batches: grain.DatasetIterator, spec: DataSpec, images: Images
) -> Generator[Batch]:
    """Passes batches on, and at the end warns of the number of skipped images."""
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
        logging.warning("data set %s: %d unreadable image(s) skipped", spec.name, skipped)


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
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags; notebooks parse none.
            flags.FLAGS.mark_as_parsed()
        count = min(spec.workers, WORKERS_PER_CORE * (os.cpu_count() or 1))
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=count))
    return iter(batches)
