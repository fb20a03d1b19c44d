"""Tests for memorisation: finds the training images nearest to samples (paper, appendix).

As a baseline it does the same for test images, which cannot have been memorised: samples should not
be nearer to the training images than test images are.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import (
    checks,
    files,
    inputs,
    outputs,
    paths,
    pictures,
    processes,
    progress,
    sharding,
)
from nvae_jax.api import Run
from nvae_jax.data import pipeline, sources, transforms
from nvae_jax.data.spec import DataSpec
from nvae_jax.interrupt import interruptible
from nvae_jax.likelihoods import crop
from nvae_jax.noise import group_temperatures

CHUNK = 4096
FILES = ("nearest.json", "nearest.png", "nearest_crop.png", "nearest.npz")


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of each query image, nearest first."""

    index: np.ndarray  # (N, k) numbers of training images
    distance: np.ndarray  # (N, k) root mean square difference of values in [0, 1]


def unbinarized_spec(spec: DataSpec) -> DataSpec:
    """The spec of the same data set without binarisation, padding and flips, for comparisons."""
    return dataclasses.replace(
        spec, image_size=spec.unpadded_size, padding=0, binarize=False, horizontal_flip=False
    )


def load_or_draw_samples(
    run: Run,
    num: int,
    *,
    file: str | Path | None = None,
    temperature: ArrayLike = 1.0,
    recalibrate_bn: bool = True,
    seed: int = 0,
) -> tuple[Callable[[], np.ndarray], dict[str, Any]]:
    """Prepares samples to compare, read from a file or drawn from the run.

    Args:
      run: an `api.Run`.
      num: largest number of samples.
      file: samples written by `sample.write_images`; None draws samples.
      temperature: temperature of the draws: one number, or one per scale, coarsest first.
      recalibrate_bn: whether to recalibrate the run at that temperature before drawing.
      seed: seed of the draws.

    Returns:
      a function () -> samples (num, H, W, C) in [0, 1], and the metadata of the samples.
    """
    group_temperatures(run.experiment.model.hierarchy, temperature)  # checked in any case
    if file is not None:
        spec = run.experiment.data
        with processes.raise_together():
            images = inputs.read(file, spec, end=num)
            with checks.naming(file):
                images = inputs.check(images, spec)
        metadata = run.metadata(**inputs.describe(images, str(file)))
        largest = np.iinfo(images.dtype).max
        return lambda: images.astype(np.float32) / largest, metadata
    run = run.recalibrated(temperature) if recalibrate_bn else run
    run.check_memory(num)
    metadata = run.metadata(
        **inputs.describe_source(None, "samples", num),
        temperature=np.atleast_1d(temperature).tolist(),
        seed=seed,
    )
    return lambda: run.sample(num, temperature=temperature, seed=seed), metadata


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
    _check(num, crop_fraction)
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


def _check(num, crop_fraction):
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
        unbinarized_spec(spec),
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


def nearest_run(
    run: Run,
    samples: Callable[[], np.ndarray],
    out: str | Path,
    *,
    num: int = 5,
    crop_fraction: float = 0.5,
    rows: int = 8,
    split: str = "test",
    metadata: Mapping[str, Any],
    source: str = "samples",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Finds the training images nearest to samples, and to as many test images.

    Writes to the folder `out`: `nearest.png` (left half: samples and their neighbours; right half:
    test images and theirs), `nearest_crop.png` (the same for the distance of centre crops),
    `nearest.npz` (distances and numbers of the training images) and `nearest.json` (medians).

    Args:
      run: an `api.Run`, whose data set is searched.
      samples: function that returns samples (N, H, W, C) in [0, 1]; it is called after the check
        that the files can be written.
      out: output folder.
      num: number of neighbours to find for each image.
      crop_fraction: height and width of the centre crop as a fraction of the image's.
      rows: number of samples shown in the pictures.
      split: split of the test images.
      metadata: metadata of the samples.
      source: the file that the samples come from.
      overwrite: whether to replace files made with other settings.

    Returns:
      the summary, as written to `nearest.json`.

    Raises:
      ValueError: if `num` or the fraction is out of range, or the files must not be written (see
        `outputs.check`).
    """
    _check(num, crop_fraction)
    spec, out = run.experiment.data, paths.parse(out)
    with processes.raise_together():
        split = pipeline.resolve_split(spec, split)
    options = {"baseline": split, "neighbours": num, "crop": crop_fraction, "rows": rows}
    metadata = {**metadata, **options}
    outputs.check([out / name for name in FILES], metadata, inputs=[source], overwrite=overwrite)
    sampled = samples()
    test = pipeline.preview(unbinarized_spec(spec), split, len(sampled))
    results = {
        name: find(
            np.concatenate([sampled, test]), training_batches(spec), num, crop_fraction=fraction
        )
        for name, fraction in (("full", 1.0), ("crop", crop_fraction))
    }
    arrays, medians = _by_source(results, len(sampled))
    summary = {**metadata, **medians}

    def write():
        _draw(spec, sampled, test, results, metadata, out)
        values = pictures.to_values(sampled, spec.num_bits)
        arrays.update(pictures.value_metadata(spec.num_bits), samples=values)
        pictures.save_arrays(out / "nearest.npz", **arrays, **metadata)
        files.write_json(out / "nearest.json", summary)
        _report(summary, out)

    processes.on_primary(write)
    return summary


def _by_source(results, num_samples):
    """Splits results into those of samples and of test images.

    Returns ({name: array} for `nearest.npz`, {name: median distance} for `nearest.json`).
    """
    arrays, medians = {}, {}
    for name, found in results.items():
        for source, part in (("sample", np.s_[:num_samples]), ("test", np.s_[num_samples:])):
            arrays[f"{source}_distance_{name}"] = found.distance[part]
            arrays[f"{source}_index_{name}"] = found.index[part]
            median = float(np.median(found.distance[part, 0]))
            medians[f"median_{source}_distance_{name}"] = median
    return arrays, medians


def _draw(spec, samples, test, results, metadata, out):
    """Writes one picture for the distance of whole images and one for that of centre crops."""
    queries, rows = np.concatenate([samples, test]), min(metadata["rows"], len(test))
    for name, found in results.items():
        file = "nearest.png" if name == "full" else f"nearest_{name}.png"
        images, columns = grid(spec, queries, len(samples), rows, found)
        pictures.save_grid(out / file, images, metadata, columns, num_bits=spec.num_bits)


def grid(
    spec: DataSpec, queries: np.ndarray, num_samples: int, rows: int, found: Neighbours
) -> tuple[np.ndarray, int]:
    """Arranges images and neighbours in a grid: each row has a sample and its neighbours, then a
    test image and its neighbours.

    Args:
      spec: the `DataSpec`.
      queries: (N, H, W, C) in [0, 1]: the samples followed by the test images.
      num_samples: number of samples among the queries.
      rows: number of rows.
      found: the neighbours of all queries.

    Returns:
      the grid's images, row by row, and its number of columns.
    """
    lines, blank = [], np.full((1, *queries.shape[1:]), 0.5, np.float32)
    for row in range(rows):
        parts = []
        for query in (row, num_samples + row):
            parts += [queries[query][None], _training_images(spec, found.index[query])]
        lines.append(np.concatenate([*parts[:2], blank, *parts[2:]]))
    return np.concatenate(lines), len(lines[0])


def _training_images(spec, indices):
    images = sources.open_images(unbinarized_spec(spec), "train")
    return np.stack([transforms.quantize(images[int(i)], spec.num_bits) for i in indices])


def _report(summary, out):
    for name in ("full", "crop"):
        sample, test = (summary[f"median_{s}_distance_{name}"] for s in ("sample", "test"))
        print(f"{name}: nearest training image, median distance {sample:.4f} of samples, ", end="")
        print(f"{test:.4f} of {summary['baseline']} images")
    print(f"written to {out}: nearest.png, nearest_crop.png, nearest.npz, nearest.json")
