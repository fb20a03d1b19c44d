"""Tests for memorisation: finds the training images nearest to samples (paper, appendix).

As a baseline it does the same for test images, which cannot have been memorised: samples should not
be nearer to the training images than test images are.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import checks, files, inputs, neighbours, outputs, paths, pictures, processes
from nvae_jax.api import Run
from nvae_jax.data import pipeline, splits, transforms
from nvae_jax.data.spec import DataSpec
from nvae_jax.noise import group_temperatures

FILES = ("nearest.json", "nearest.png", "nearest_crop.png", "nearest.npz")


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
    neighbours.check(num, crop_fraction)
    spec, out = run.experiment.data, paths.parse(out)
    with processes.raise_together():
        split = pipeline.resolve_split(spec, split)
    options = {"baseline": split, "neighbours": num, "crop": crop_fraction, "rows": rows}
    metadata = {**metadata, **options}
    outputs.check([out / name for name in FILES], metadata, inputs=[source], overwrite=overwrite)
    sampled = samples()
    test = pipeline.preview(spec.unbinarized(), split, len(sampled))
    results = {
        name: neighbours.find(
            np.concatenate([sampled, test]),
            neighbours.training_batches(spec),
            num,
            crop_fraction=fraction,
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
    spec: DataSpec, queries: np.ndarray, num_samples: int, rows: int, found: neighbours.Neighbours
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
    images = splits.open_images(spec.unbinarized(), "train")
    return np.stack([transforms.quantize(images[int(i)], spec.num_bits) for i in indices])


def _report(summary, out):
    for name in ("full", "crop"):
        sample, test = (summary[f"median_{s}_distance_{name}"] for s in ("sample", "test"))
        print(f"{name}: nearest training image, median distance {sample:.4f} of samples, ", end="")
        print(f"{test:.4f} of {summary['baseline']} images")
    print(f"written to {out}: nearest.png, nearest_crop.png, nearest.npz, nearest.json")
