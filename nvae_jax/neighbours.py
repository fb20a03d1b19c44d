"""Searches a data set for the images nearest to others, on all devices."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax import progress, sharding
from nvae_jax.data import pipeline
from nvae_jax.data.spec import DataSpec
from nvae_jax.interrupt import interruptible
from nvae_jax.likelihoods import crop

CHUNK = 4096


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of each query image, nearest first."""

    index: np.ndarray  # (N, k) numbers of training images
    distance: np.ndarray  # (N, k) root mean square difference of values in [0, 1]


def find(
    queries: np.ndarray,
    batches: Iterable[Mapping[str, np.ndarray]],
    num: int,
    *,
    crop_fraction: float = 1.0,
) -> Neighbours:
    """Finds the `num` images nearest to each query, sharing the comparisons among all devices.

    Args:
      queries: (N, H, W, C) in [0, 1].
      batches: this host's shards of {"image": (B, H, W, C) in [0, 1], "mask": (B,), "id": (B,)};
        the number of devices divides B. The iterable is read once.
      num: number of neighbours to find; if there are fewer images, all are returned.
      crop_fraction: compare only the centre crop with this fraction of the height and width.

    Returns:
      `Neighbours`.

    Raises:
      ValueError: if `num` or the fraction is out of range, or the images' sizes differ.
    """
    check(num, crop_fraction)
    targets = np.asarray(_central(queries, crop_fraction), np.float32)
    mesh, compare = _comparison()
    best = np.zeros((len(targets), 0), np.float32), np.zeros((len(targets), 0), np.int64)
    for batch in interruptible(batches):
        images = _central(batch["image"], crop_fraction)
        if images.shape[1:] != targets.shape[1:]:
            raise ValueError(
                f"images of shape {images.shape[1:]} cannot be compared with queries of shape "
                f"{targets.shape[1:]}"
            )
        ids = np.asarray(batch["id"], np.int32)
        placed = [sharding.to_devices(mesh, a) for a in (images, batch["mask"], ids)]
        distances, numbers = compare(targets, *placed)
        best = _merge(best, np.asarray(distances), np.asarray(numbers), num)
    distance, index = best
    found = np.isfinite(distance).all(0)
    return Neighbours(index[:, found], distance[:, found])


def check(num: int, crop_fraction: float) -> None:
    """Raises ValueError if a number of neighbours or a fraction is out of range."""
    if num < 1 or not 0 < crop_fraction <= 1:
        raise ValueError(
            f"num must be at least 1 and crop_fraction in (0, 1]: {num}, {crop_fraction}"
        )


def _central(images, fraction):
    height = images.shape[1]
    return crop(images, (height - max(round(height * fraction), 1)) // 2)


@cache
def _comparison():
    """Returns the mesh of all devices, and `_distances` compiled for batches sharded over it."""
    mesh = sharding.make_mesh(sharding.MeshSettings())
    return mesh, jax.jit(_distances, out_shardings=sharding.replicated(mesh))


def _distances(queries, images, mask, ids):
    """Root mean square differences (N, B), infinite for masked images, and the images' numbers."""
    distances = jnp.where(mask[None], _differences(queries, images), jnp.inf)
    return distances, ids


def _differences(queries, images):
    """Root mean square differences (N, B), from |a|² + |b|² - 2ab so that memory stays small."""
    n, size = len(queries), queries[0].size
    a, b = queries.reshape(n, size), images.reshape(len(images), size)
    # Subtracting the mean of the queries reduces cancellation.
    mean = a.mean(0)[None]
    a, b = a - mean, b - mean
    products = jnp.dot(a, b.T, precision="highest")
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * products
    return jnp.sqrt(jnp.maximum(squares, 0.0) / size)


def _merge(best, distances, ids, num):
    """Merges the best (distances, numbers) so far with those of a batch and keeps `num`."""
    index = np.concatenate([best[1], np.broadcast_to(ids, distances.shape)], 1)
    distances = np.concatenate([best[0], distances], 1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :num]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(index, order, 1)


def training_batches(spec: DataSpec) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields this host's shards of batches of all training images, without augmentation."""
    batches = pipeline.eval_batches(
        spec.unbinarized(),
        split="train",
        batch_size=sharding.round_up(None, CHUNK),
        seed=0,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
    total = pipeline.num_examples(spec, "train")
    with progress.bar("comparing", unit="image", total=total) as bar:
        for batch in batches:
            yield batch
            bar.update(min(CHUNK, total - bar.n))
