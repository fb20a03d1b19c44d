"""Analyses a model's latents: KL by group and scale, active units, variables in use, rates, and the
distance of the prior from the aggregate posterior."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nvae_jax import (
    extras,
    files,
    history,
    outputs,
    paths,
    pictures,
    processes,
    progress,
    rate_distortion,
    sharding,
)
from nvae_jax.api import Run
from nvae_jax.data import pipeline
from nvae_jax.likelihoods import bits_per_dim
from nvae_jax.objective import ACTIVE_NATS, active_units
from nvae_jax.posterior_moments import Moments, latent_moments

# A latent variable is in use if its KL and the variance of its posterior mean exceed these.
USED_NATS = 0.01
USED_VARIANCE = 0.01
COUNTS = ("kl", "kl_bits_per_dim", "prior_gap", "active_units", "units", "used_variables")
COUNTS += ("variables",)
RATE_EXAMPLES = 1000  # images for rate and distortion, which take one pass per number of groups


def summarize(run: Run, count: int, moments: list[Moments]) -> dict[str, Any]:
    """Summarises the moments per group, per scale and in total; see `analyze_run`."""
    hierarchy = run.experiment.model.hierarchy
    num_dims = math.prod(run.experiment.data.unpadded_shape)
    groups = []
    for number, (scale, (kl, variance, gap)) in enumerate(
        zip(hierarchy.scale_of_group(), moments, strict=True)
    ):
        used = (kl > USED_NATS) & (variance > USED_VARIANCE)
        channels = kl.sum((0, 1))
        groups.append(
            {
                "group": number,
                "scale": scale,
                "size": hierarchy.size(scale),
                "kl": float(kl.sum()),
                "kl_bits_per_dim": float(bits_per_dim(kl.sum(), num_dims)),
                "kl_channel": channels.tolist(),
                "prior_gap": float(max(gap.sum(), 0.0)),
                "active_units": int(active_units(channels)),
                "units": channels.size,
                "used_variables": int(used.sum()),
                "variables": used.size,
            }
        )
    scales = [_sum_over_scale(groups, scale) for scale in reversed(range(hierarchy.num_scales))]
    totals = {key: sum(group[key] for group in groups) for key in COUNTS}
    thresholds = {
        "active_nats": ACTIVE_NATS,
        "used_nats": USED_NATS,
        "used_variance": USED_VARIANCE,
    }
    return {"num_examples": count, **totals, **thresholds, "scales": scales, "groups": groups}


def _sum_over_scale(groups, scale):
    members = [group for group in groups if group["scale"] == scale]
    return {
        "scale": scale,
        "size": members[0]["size"],
        "num_groups": len(members),
        **{key: sum(group[key] for group in members) for key in COUNTS},
    }


def analyze_run(
    run: Run,
    out: str | Path,
    *,
    split: str = "test",
    max_examples: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Analyses the latents of a run and writes the results to the folder `out`.

    The files are `latents.json`, `latents.npz` and these charts: `latents.png` (KL and active units
    by group, rate by scale), `rate_distortion.png`, `prior_gap.png`, and `training.png` (KL by
    group over training) if the run has metrics.

    A unit is a latent channel; it is active if its KL exceeds 0.1 nats per image (see
    `objective.active_units`). A variable is one channel at one pixel; it is in use if its KL
    exceeds 0.01 nats and the variance of its posterior mean over images exceeds 0.01 (Burda et al.
    2016).

    Args:
      run: an `api.Run`.
      out: output folder.
      split: split of the data set to analyse.
      max_examples: number of images to use, from the first; None uses all.
      seed: seed of posterior draws and of binarisation.
      overwrite: whether to replace files made with other settings.

    Returns:
      the summary, as written to `latents.json`.

    Raises:
      ValueError: if there are too few images, or the files must not be written (see
        `outputs.check`).
    """
    charts = extras.load("nvae_jax.latent_charts", "plots", "analyze")
    spec = run.experiment.data
    with processes.raise_together():
        split, out = pipeline.resolve_split(spec, split), paths.parse(out)
    metadata = run.metadata(split=split, max_examples=max_examples or "all", seed=seed)
    names = ["latents.json", "latents.png", "latents.npz", "rate_distortion.png", "prior_gap.png"]
    written = [out / name for name in (*names, "training.png")]
    outputs.check(written, metadata, overwrite=overwrite)
    summary, moments = measure(run, split=split, max_examples=max_examples, seed=seed)
    summary = {**metadata, **summary}
    arrays = {
        f"{name}_{number:02d}": array
        for number, group in enumerate(moments)
        for name, array in group._asdict().items()
    }

    def write():
        files.write_json(written[0], summary)
        pictures.save_arrays(written[2], **arrays, **metadata)
        for name, figure in draw_all(charts, run, summary).items():
            pictures.save_png(out / f"{name}.png", charts.rasterize(figure), metadata)
        _report(summary, [path for path in written if path.exists()])

    processes.on_primary(write)
    return summary


def _report(summary, written):
    for scale in summary["scales"]:
        print(
            f"{scale['size']}x{scale['size']}: {scale['num_groups']} group(s), KL {scale['kl']:.2f}"
            f" nats ({scale['kl_bits_per_dim']:.4f} bits/dim), "
            f"{scale['active_units']} of {scale['units']} units active, "
            f"{scale['used_variables']} of {scale['variables']} variables in use"
        )
    print(explain_gap(summary))
    print(f"written to {written[0].parent}: {', '.join(path.name for path in written)}")


def measure(
    run: Run, *, split: str = "test", max_examples: int | None = None, seed: int = 0
) -> tuple[dict[str, Any], list[Moments]]:
    """Computes the summary in `latents.json` and the moments behind it; see `analyze_run`."""
    spec = run.experiment.data
    total = pipeline.num_examples(spec, split)
    total = min(total, max_examples or total)
    if total < 2:
        raise ValueError(f"a variance needs at least two images, not {total}")
    batch_size = pipeline.eval_batch_size(run.batch_size, max_examples)
    batches = pipeline.eval_batches(
        spec,
        split=split,
        batch_size=sharding.round_up(None, batch_size),
        seed=seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        max_examples=max_examples,
    )
    with progress.bar("analysing", unit="image", total=total) as bar:
        count, moments = latent_moments(
            run, batches, seed=seed, progress=lambda done: bar.update(done - bar.n)
        )
    summary = summarize(run, count, moments)
    with progress.bar(
        "decoding from ever more groups",
        unit="pass",
        total=len(rate_distortion.group_counts(run.experiment.model.hierarchy)),
    ) as bar:
        points = rate_distortion.measure(
            run,
            [group["kl"] for group in summary["groups"]],
            split=split,
            max_examples=min(total, RATE_EXAMPLES),
            seed=seed,
            progress=bar.update,
        )
    return {**summary, "rate_distortion": points}, moments


def draw_all(charts: Any, run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Draws a chart for each part of a summary, and one of training if the run has metrics.

    Args:
      charts: the module `latent_charts`, which needs the extra `plots`.
      run: an `api.Run`.
      summary: the summary returned by `measure`.

    Returns:
      {name: figure}.
    """
    points, metrics = summary["rate_distortion"], history.read(run.workdir, run.state.step)
    figures = {
        "latents": charts.draw(summary),
        "rate_distortion": charts.draw_rate_distortion(points),
        "prior_gap": charts.draw_prior_gap(summary, points),
    }
    trained = history.numbered(metrics, "train/kl_group")
    return figures | ({"training": charts.draw_training(metrics)} if trained else {})


def explain_gap(summary: Mapping[str, Any]) -> str:
    """Explains in a sentence what the gap between prior and aggregate posterior does to samples."""
    points = summary["rate_distortion"]
    distances = [point["frechet"] for point in points]
    drops = -np.diff(distances)
    worst = int(drops.argmax())
    first, last = points[worst]["groups"], points[worst + 1]["groups"] - 1
    gap, kl = summary["prior_gap"], summary["kl"]
    mismatch = f"at least {gap:.2f} of {kl:.2f} nats of KL ({gap / max(kl, 1e-9):.0%}) are"
    if not np.isfinite(gap):
        mismatch = "with so few images it is unknown how much of the KL is"
    return (
        f"prior-posterior gap: {mismatch} mismatch of the prior; the Fréchet distance is "
        f"{distances[0]:.3g} for samples and {distances[-1]:.3g} for reconstructions, and falls "
        f"most once the posterior gives group {first if first == last else f'{first} to {last}'}"
    )
