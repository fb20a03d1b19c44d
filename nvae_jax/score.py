"""Scores a set of images, measures how well the scores separate it from another set, and writes
files and a table."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvae_jax import (
    checks,
    detection,
    extras,
    files,
    outputs,
    paths,
    pictures,
    processes,
    progress,
    scores,
)
from nvae_jax.api import Run
from nvae_jax.image_sets import ImageSet, open_set


def score_set(
    run: Run, images: ImageSet, *, max_examples: int | None = None, seed: int = 0, **options: Any
) -> dict[str, np.ndarray]:
    """Scores the images of a set in batches with `scores.score`.

    Args:
      run: an `api.Run`.
      images: images of the run's shape.
      max_examples: number of images to use, from the first; None uses all.
      seed: seed of the draws and of binarisation.
      **options: options of `scores.score`.

    Returns:
      {name: (N,)} of the scores, with the images' numbers as `image` and, if each image is a file
      of its own, its name as `picture`.

    Raises:
      ValueError: if none of the images can be read.
    """
    parts, total = [], min(max_examples or len(images.images), len(images.images))
    with progress.bar(f"scoring {images.name}", unit="image", total=total) as bar:
        for numbers, batch in images.batches(run.batch_size, max_examples):
            if not len(numbers):
                continue
            with checks.naming(images.name):
                found = scores.score(run, batch, seed=seed, numbers=numbers, **options)
            names = {"picture": np.array(images.files)[numbers]} if images.files else {}
            parts.append({"image": numbers, **names, **found})
            bar.update(len(numbers))
    if not parts:
        raise ValueError(f"{images.name}: none of the images can be read")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def score_run(
    run: Run,
    out: str | Path,
    *,
    images: str = "test",
    against: str | None = None,
    num_iw_samples: int = 1,
    scales: Sequence[int] | None = None,
    max_examples: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Scores images and writes the results to the folder `out`.

    The files are `scores.csv` and `scores.npz` (every image) and `scores.json` (means). With
    `against` there are also `against.csv` and `against.npz`, and `scores.png` (histograms), and the
    summary says how well each score separates the two sets; see `detection.measure`.

    Args:
      run: an `api.Run`.
      out: output folder.
      images: images like the training data, as named for `image_sets.open_set`.
      against: other images, named in the same way; None compares with nothing.
      num_iw_samples: K, number of draws per image.
      scales: every k for which to compute L^{>k}; None uses all.
      max_examples: number of images of each set to use, from the first; None uses all.
      seed: seed of the draws and of binarisation.
      overwrite: whether to replace files made with other settings.

    Returns:
      the summary, as written to `scores.json`.

    Raises:
      ValueError: if the images do not fit the run, it has no such scale, or the files must not be
        written (see `outputs.check`).
    """
    scales, out = scores.check_scales(run, scales), paths.parse(out)
    sources = {"scores": images} | ({"against": against} if against is not None else {})
    if against is not None:
        extras.load("sklearn.metrics", "scores", "--against")
        extras.load("nvae_jax.score_charts", "scores", "--against")
    sets = {name: open_set(run.experiment.data, source) for name, source in sources.items()}
    metadata = run.metadata(
        images=sets["scores"].name,
        against=sets["against"].name if against is not None else "nothing",
        num_iw_samples=num_iw_samples,
        scales=list(scales),
        max_examples=max_examples or "all",
        seed=seed,
    )
    outputs.check(_files(out, sets), metadata, inputs=sources.values(), overwrite=overwrite)
    options: dict[str, Any] = {"num_samples": num_iw_samples, "scales": scales, "seed": seed}
    found = {
        name: score_set(run, image_set, max_examples=max_examples, **options)
        for name, image_set in sets.items()
    }
    summary = {**metadata, **_summarize(found)}
    _write(out, sets, found, summary, metadata)
    if processes.is_primary():
        _report(summary, detection.nats(_only_scores(found["scores"])), _files(out, sets))
    return summary


def _files(out, sets):
    """The paths of all output files."""
    endings = [f"{name}.{ending}" for name in sets for ending in ("csv", "npz")]
    picture = ["scores.png"] if "against" in sets else []
    return [out / name for name in ("scores.json", *endings, *picture)]


def _summarize(found):
    """The mean scores and, if there are two sets, how well each score separates them."""
    summary = _means(found["scores"])
    if "against" in found:
        summary["against_mean"] = _means(found["against"])
        summary["detection"] = detection.measure_all(*map(_only_scores, found.values()))
    return summary


def _write(out, sets, found, summary, metadata):
    if "against" in found:
        charts = extras.load("nvae_jax.score_charts", "scores", "--against")
        by_set = {sets[name].name: values for name, values in found.items()}
        pictures.save_png(out / "scores.png", charts.draw(by_set, summary["detection"]), metadata)
    for name, values in found.items():
        _write_csv(out / f"{name}.csv", values)
        extra = {key: value for key, value in metadata.items() if key not in values}
        pictures.save_arrays(out / f"{name}.npz", **values, **extra)
    files.write_json(out / "scores.json", summary)


def _only_scores(found):
    return {name: values for name, values in found.items() if name not in ("image", "picture")}


def _means(found):
    means = {name: float(values.mean()) for name, values in _only_scores(found).items()}
    return {"num_examples": len(found["image"]), **means}


def _write_csv(path, values):
    with files.atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(values)
        writer.writerows(zip(*(column.tolist() for column in values.values()), strict=True))


def _report(summary, names, written):
    """Prints a table with one line per score."""
    detected, other = summary.get("detection"), summary.get("against_mean")
    print(f"{summary['num_examples']} images of {summary['images']}, means in nats", end="")
    print(f", against {other['num_examples']} of {summary['against']}:" if other else ":")
    print(f"{'':>12}{'mean':>11}", end="")
    print(f"{'against':>11}{'AUROC':>8}{'AUPRC':>8}{'FPR80':>8}" if other else "")
    for name in names:
        print(f"{name:>12} {summary[name]:10.3f}", end="")
        rates = [detected[name][key] for key in ("auroc", "auprc", "fpr80")] if detected else []
        columns = "".join(f"{rate:8.3f}" for rate in rates)
        print(f" {other[name]:10.3f}{columns}" if other else "")
    print(f"written to {written[0].parent}: {', '.join(path.name for path in written)}")
