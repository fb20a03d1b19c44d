"""Scores of a set of images, and how well they tell it from another set: files and a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvae_jax import (
    detection,
    distributed,
    extras,
    files,
    outputs,
    paths,
    pictures,
    progress,
    scores,
)
from nvae_jax.api import Run
from nvae_jax.image_sets import ImageSet, open_set


def score_set(
    run: Run, images: ImageSet, *, max_examples: int | None = None, seed: int = 0, **options: Any
) -> dict[str, np.ndarray]:
    """`scores.score` of the images of a set, a batch at a time, with their numbers as `image` and,
    where they are files on their own, `picture`.

    Args:
      run: an `api.Run`.
      images: of its shape.
      max_examples: only the first so many; None takes all.
      seed: of the draws, and of binarisation.
      **options: of `scores.score`.
    """
    parts, total = [], min(max_examples or len(images.images), len(images.images))
    with progress.bar(f"scoring {images.name}", unit="image", total=total) as bar:
        for numbers, batch in images.batches(run.batch_size, max_examples):
            if not len(numbers):
                continue
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
    """Scores images and writes `scores.csv` and `scores.npz` (every image), and `scores.json`
    (means); with `against` also `against.csv` and `against.npz`, `scores.png` (histograms), and how
    well each score tells the two sets apart, see `detection.measure`.

    Args:
      run: an `api.Run`.
      out: a folder.
      images: like the training data; what `image_sets.open_set` takes.
      against: others; the same.
      num_iw_samples: K, draws an image.
      scales: every k of L^{>k}; None takes all.
      max_examples: only the first so many of each set; None takes all.
      seed: of the draws, and of binarisation.
      overwrite: whether to replace files of other settings.

    Returns:
      the summary, as written to `scores.json`.

    Raises:
      ValueError: the images are none for this run, it has no such scale, or the files may not be
        written; see `outputs.check`.
    """
    scales, spec = scores.check_scales(run, scales), run.experiment.data
    named = {"scores": images} | ({"against": against} if against is not None else {})
    if against is not None:
        extras.load("sklearn.metrics", "scores", "--against")
        charts = extras.load("nvae_jax.score_charts", "scores", "--against")
    sets = {name: open_set(spec, source) for name, source in named.items()}
    metadata = run.metadata(
        images=sets["scores"].name,
        against=sets["against"].name if against is not None else "nothing",
        num_iw_samples=num_iw_samples,
        scales=list(scales),
        max_examples=max_examples or "all",
        seed=seed,
    )
    out = paths.parse(out)
    endings = [f"{name}.{ending}" for name in sets for ending in ("csv", "npz")]
    picture = ["scores.png"] if against is not None else []
    written = [out / name for name in ("scores.json", *endings, *picture)]
    outputs.check(written, metadata, inputs=named.values(), overwrite=overwrite)
    options: dict[str, Any] = {"num_samples": num_iw_samples, "scales": scales, "seed": seed}
    found = {
        name: score_set(run, those, max_examples=max_examples, **options)
        for name, those in sets.items()
    }
    summary = {**metadata, **_means(found["scores"])}
    if against is not None:
        summary |= {
            "against_mean": _means(found["against"]),
            "detection": detection.measure_all(*map(_scores_alone, found.values())),
        }
        those = {sets[name].name: values for name, values in found.items()}
        pictures.save_png(out / "scores.png", charts.draw(those, summary["detection"]), metadata)
    for name, values in found.items():
        _write_csv(out / f"{name}.csv", values)
        pictures.save_arrays(out / f"{name}.npz", **values, **_apart(metadata, values))
    files.write_json(out / "scores.json", summary)
    if distributed.is_primary():
        _report(summary, detection.nats(_scores_alone(found["scores"])), written)
    return summary


def _scores_alone(found):
    return {name: values for name, values in found.items() if name not in ("image", "picture")}


def _means(found):
    means = {name: float(values.mean()) for name, values in _scores_alone(found).items()}
    return {"num_examples": len(found["image"]), **means}


def _apart(metadata: Mapping[str, Any], values: Mapping[str, np.ndarray]):
    return {name: value for name, value in metadata.items() if name not in values}


def _write_csv(path, values):
    with files.atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(values)
        writer.writerows(zip(*(column.tolist() for column in values.values()), strict=True))


def _report(summary, names, written):
    """A line a score."""
    detected, other = summary.get("detection"), summary.get("against_mean")
    print(f"{summary['num_examples']} images of {summary['images']}, means in nats", end="")
    print(f", beside {other['num_examples']} of {summary['against']}:" if other else ":")
    print(f"{'':>12}{'mean':>11}", end="")
    print(f"{'against':>11}{'AUROC':>8}{'AUPRC':>8}{'FPR80':>8}" if other else "")
    for name in names:
        print(f"{name:>12} {summary[name]:10.3f}", end="")
        rates = [detected[name][key] for key in ("auroc", "auprc", "fpr80")] if detected else []
        columns = "".join(f"{rate:8.3f}" for rate in rates)
        print(f" {other[name]:10.3f}{columns}" if other else "")
    print(f"written to {written[0].parent}: {', '.join(path.name for path in written)}")
