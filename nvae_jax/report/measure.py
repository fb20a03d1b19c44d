"""Computes the contents of a report about a run; `sections.py` presents them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from nvae_jax import analyze, history, inputs, nearest, neighbours, progress
from nvae_jax.api import Run
from nvae_jax.data import pipeline
from nvae_jax.history import Series
from nvae_jax.hub.model_folder import read_results
from nvae_jax.reconstruct import groups_by_scale, reconstruct_partially

RECONSTRUCTED = 8  # number of images with reconstructions
NEIGHBOURS = 5  # nearest training images per sample
SCORED = 200  # images per split for the comparison of scores


@dataclass(frozen=True)
class Settings:
    """Settings of a report.

    Attributes:
      split: the split of the data set.
      max_examples: how many of its images are measured.
      temperatures: the temperatures of samples.
      num: number of samples at each temperature.
      nearest: whether to compare samples with all training images.
      passes: passes of recalibration; None takes the config's number.
      seed: the seed of all draws.
    """

    split: str = "test"
    max_examples: int = 1000
    temperatures: Sequence[float] = (1.0, 0.8, 0.6, 0.4)
    num: int = 25
    nearest: bool = True
    passes: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Findings:
    """The contents of a report. A part whose data are missing is None; `missing` has the reason.

    Attributes:
      metrics: training metrics by step.
      results: the evaluations of these weights.
      samples: {(temperature, whether recalibrated): images (N, H, W, C)}.
      latents: the result of `analyze.measure`.
      reconstructions: (images, numbers of groups, reconstructions (K, N, H, W, C)).
      neighbours: (images of the grid, number of its columns, median distances).
      scores: {split: {score: values (N,)}} of training and held-out images, see `scores.score`.
      missing: {section: reason}.
    """

    metrics: Mapping[str, Series]
    results: Sequence[Mapping[str, Any]]
    samples: Mapping[tuple[float, bool], np.ndarray]
    latents: Mapping[str, Any] | None = None
    reconstructions: tuple[np.ndarray, Sequence[int], np.ndarray] | None = None
    neighbours: tuple[np.ndarray, int, Mapping[str, float]] | None = None
    scores: Mapping[str, Mapping[str, np.ndarray]] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


def measure(run: Run, settings: Settings) -> Findings:
    """Computes all parts; a part that cannot be computed is left out, with the reason."""
    found: dict[str, Any] = {}
    missing = {}
    samples = draw_samples(run, settings)
    parts = {"latents": _latents, "reconstructions": _reconstructions, "scores": _scores}
    parts |= {"neighbours": _neighbours} if settings.nearest else {}
    for name, part in parts.items():
        try:
            found[name] = part(run, settings, samples)
        except (ValueError, OSError) as error:
            missing[name] = str(error).splitlines()[0]
    return Findings(
        metrics=history.read(run.workdir, run.state.step),
        results=_results(run),
        samples=samples,
        missing=missing,
        **found,
    )


def draw_samples(run: Run, settings: Settings) -> dict[tuple[float, bool], np.ndarray]:
    """Samples from the same noise at each temperature, each time also with recalibration."""
    samples = {}
    for temperature in progress.bar("sampling", settings.temperatures, unit="temperature"):
        recalibrated = run.recalibrated(temperature, passes=settings.passes)
        for key, each in ((False, run), (True, recalibrated)):
            samples[temperature, key] = each.sample(
                settings.num, temperature=temperature, seed=settings.seed
            )
    return samples


def _latents(run, settings, samples):
    split = pipeline.resolve_split(run.experiment.data, settings.split)
    options = {"max_examples": settings.max_examples, "seed": settings.seed}
    return {"split": split, **analyze.measure(run, split=split, **options)[0]}


def _reconstructions(run, settings, samples):
    split = pipeline.resolve_split(run.experiment.data, settings.split)
    images = inputs.select(
        run.experiment, images=None, split=split, num=RECONSTRUCTED, seed=settings.seed
    )
    groups = groups_by_scale(run.experiment.model.hierarchy)
    return images, groups, reconstruct_partially(run, images, groups, seed=settings.seed)


def _scores(run, settings, samples):
    held_out = pipeline.resolve_split(run.experiment.data, settings.split)
    num, seed = min(SCORED, settings.max_examples), settings.seed
    select = partial(inputs.select, run.experiment, images=None, num=num, seed=seed)
    splits = dict.fromkeys(("train", held_out))
    return {split: run.score(select(split=split), seed=seed) for split in splits}


def _neighbours(run, settings, samples):
    """For recalibrated samples at the lowest temperature, which are the nearest to the data."""
    spec, rows = run.experiment.data, RECONSTRUCTED
    sampled = samples[min(settings.temperatures), True]
    split = pipeline.resolve_split(spec, settings.split)
    test = pipeline.preview(spec.unbinarized(), split, len(sampled))
    queries = np.concatenate([sampled, test])
    found = neighbours.find(queries, neighbours.training_batches(spec), NEIGHBOURS)
    pictures, columns = nearest.grid(spec, queries, len(sampled), min(rows, len(test)), found)
    medians = {
        "samples": float(np.median(found.distance[: len(sampled), 0])),
        f"{split} images": float(np.median(found.distance[len(sampled) :, 0])),
    }
    return pictures, columns, medians


def _results(run):
    try:
        results = read_results(run.workdir).values()
    except (ValueError, OSError):
        return []
    return [result for result in results if result.get("weights") == run.state.fingerprint]
