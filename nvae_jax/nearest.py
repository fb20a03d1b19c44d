"""Is it memorising? The training images nearest to samples (paper, appendix), and the same for test
images, which cannot have been memorised: samples should be no nearer than those."""

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

from nvae_jax import distributed, files, inputs, outputs, paths, pictures, progress, sharding
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
    """The nearest training images of some queries, nearest first."""

    index: np.ndarray  # (N, k) numbers of training images
    distance: np.ndarray  # (N, k) root mean square difference of values in [0, 1]


def unbinarized_spec(spec: DataSpec) -> DataSpec:
    """The data set as pictures that can be compared: neither binarised nor padded."""
    size = spec.image_size - 2 * spec.padding
    return dataclasses.replace(
        spec, image_size=size, padding=0, binarize=False, horizontal_flip=False
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
    """A function that gives samples to compare, and what makes them.

    Args:
      run: an `api.Run`.
      num: how many, at most.
      file: of `sample.write_images`, to take them from; None draws them.
      temperature: to draw at: one number, or one a scale, coarsest first.
      recalibrate_bn: recalibrate the run at that temperature first.
      seed: of the draw.

    Returns:
      () -> (num, H, W, C) in [0, 1], and a dict.
    """
    group_temperatures(run.experiment.model.hierarchy, temperature)  # for a file too: checked
    if file is not None:
        spec = run.experiment.data
        with distributed.raise_together():
            images = inputs.check(inputs.read(file, spec, end=num), spec)
        metadata = run.metadata(**inputs.describe(images, str(file)))
        largest = np.iinfo(images.dtype).max
        return lambda: images.astype(np.float32) / largest, metadata
    run = run.recalibrated(temperature) if recalibrate_bn else run
    run.check_room(num)
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
    """The `num` nearest of all images for each query. All devices share the comparisons.

    Args:
      queries: (N, H, W, C) in [0, 1].
      batches: this host's parts of {"image": (B, H, W, C) in [0, 1], "mask": (B,), "id": (B,)}, B
        divided by the devices; read once.
      num: k; fewer come back where there are fewer images.
      crop_fraction: compare the central part of this height and width alone.

    Returns:
      `Neighbours`.

    Raises:
      ValueError: `num` or the fraction is out of range, or the sizes differ.
    """
    _check(num, crop_fraction)
    targets = np.asarray(_central(queries, crop_fraction), np.float32)
    mesh, compare = _comparison()
    best = np.zeros((len(targets), 0), np.float32), np.zeros((len(targets), 0), np.int64)
    for batch in interruptible(batches):
        images = _central(batch["image"], crop_fraction)
        if images.shape[1:] != targets.shape[1:]:
            raise ValueError(f"images of {images.shape[1:]} beside others of {targets.shape[1:]}")
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
    """The devices, and `_distances` such that they share the images and all get the result."""
    mesh = sharding.make_mesh(sharding.MeshSettings())
    return mesh, jax.jit(_distances, out_shardings=sharding.replicated(mesh))


def _distances(queries, images, mask, ids):
    """Root mean square differences (N, B), infinite where masked, and the images' numbers."""
    distances = jnp.where(mask[None], _differences(queries, images), jnp.inf)
    return distances, ids


def _differences(queries, images):
    """As products, not as N·B images."""
    n, size = len(queries), queries[0].size
    a, b = queries.reshape(n, size), images.reshape(len(images), size)
    # Centred on the queries' mean, the squares lose less to cancellation.
    mean = a.mean(0)[None]
    a, b = a - mean, b - mean
    products = jnp.dot(a, b.T, precision="highest")
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * products
    return jnp.sqrt(jnp.maximum(squares, 0.0) / size)


def _merge(best, distances, ids, num):
    index = np.concatenate([best[1], np.broadcast_to(ids, distances.shape)], 1)
    distances = np.concatenate([best[0], distances], 1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :num]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(index, order, 1)


def training_batches(spec: DataSpec) -> Iterator[Mapping[str, np.ndarray]]:
    """This host's parts of chunks of all training images as they are."""
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
    """Compares samples, and as many test images, with the whole training set.

    Writes `nearest.png` (left half: a sample and its neighbours; right half: a test image and its),
    `nearest_crop.png` (the same by the distance of centre crops), `nearest.npz` (distances and
    numbers of training images) and `nearest.json` (their medians).

    Args:
      run: an `api.Run`, for its data.
      samples: gives (N, H, W, C) in [0, 1]; called when the files may be written.
      out: a folder.
      num: neighbours of each.
      crop_fraction: height and width of the centre crop, as a part of the image's.
      rows: how many samples the pictures show.
      split: of the baseline.
      metadata: what makes the samples.
      source: the file that they come from.
      overwrite: whether to replace files of other settings.

    Returns:
      the summary, as written to `nearest.json`.

    Raises:
      ValueError: `num` or the fraction is out of range, or the files may not be written; see
        `outputs.check`.
    """
    _check(num, crop_fraction)
    spec, out = run.experiment.data, paths.parse(out)
    with distributed.raise_together():
        split = pipeline.resolve_split(spec, split)
    metadata = {
        **metadata,
        "baseline": split,
        "neighbours": num,
        "crop": crop_fraction,
        "rows": rows,
    }
    written = [out / name for name in FILES]
    outputs.check(written, metadata, inputs=[source], overwrite=overwrite)
    sampled = samples()
    count, test = len(sampled), pipeline.preview(unbinarized_spec(spec), split, len(sampled))
    queries = np.concatenate([sampled, test])
    results = {}
    for name, fraction in (("full", 1.0), ("crop", crop_fraction)):
        results[name] = find(queries, training_batches(spec), num, crop_fraction=fraction)
    arrays = {"samples": pictures.to_values(sampled, spec.num_bits)}
    arrays, summary = arrays | pictures.value_metadata(spec.num_bits), dict(metadata)
    for name, found in results.items():
        for source, part in (("sample", np.s_[:count]), ("test", np.s_[count:])):
            arrays[f"{source}_distance_{name}"] = found.distance[part]
            arrays[f"{source}_index_{name}"] = found.index[part]
            median = float(np.median(found.distance[part, 0]))
            summary[f"median_{source}_distance_{name}"] = median

    def write():
        for name, found in results.items():
            file = "nearest.png" if name == "full" else f"nearest_{name}.png"
            images, columns = grid(spec, queries, count, min(rows, len(test)), found)
            pictures.save_grid(out / file, images, metadata, columns, num_bits=spec.num_bits)
        pictures.save_arrays(out / "nearest.npz", **arrays, **metadata)
        files.write_json(out / "nearest.json", summary)
        _report(summary, out)

    distributed.on_primary(write)
    return summary


def grid(
    spec: DataSpec, queries: np.ndarray, num_samples: int, rows: int, found: Neighbours
) -> tuple[np.ndarray, int]:
    """A picture of neighbours: in each row a sample and its neighbours, then a test image and its.

    Args:
      spec: of the data set.
      queries: (N, H, W, C) in [0, 1]: so many samples, and then test images.
      num_samples: how many.
      rows: how many of each are shown.
      found: of all queries.

    Returns:
      the grid's images, row by row, and its columns.
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
