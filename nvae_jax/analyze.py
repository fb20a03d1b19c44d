"""What the latents do: KL by group and scale, active units, variables in use, rates."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax import extras, files, outputs, paths, pictures, progress, sharding
from nvae_jax.api import Run
from nvae_jax.data import pipeline
from nvae_jax.likelihoods import bits_per_dim
from nvae_jax.models.latents import POSTERIOR
from nvae_jax.models.nvae import NVAE
from nvae_jax.noise import image_keys, latent_noise
from nvae_jax.objective import ACTIVE_NATS, active_units

USED_NATS = 0.01  # a latent variable with less KL than this is not in use
USED_VARIANCE = 0.01  # nor is one whose posterior mean hardly changes from image to image
COUNTS = ("kl", "kl_bits_per_dim", "active_units", "units", "used_variables", "variables")


def make_moment_step(model: NVAE) -> Callable[..., Any]:
    """(variables, key, image numbers (B,), images (B, H, W, C), mask (B,)) -> for each group sums
    over the images, of (h, w, z): KL in nats, posterior mean and its square."""

    def moment_step(variables, key, indices, images, mask):
        noise = latent_noise(model, image_keys(key, indices))
        apply, groups = partial(model.apply, variables), len(noise)
        features = apply(images, method="encode")
        sources = np.full(groups, POSTERIOR)
        draw: Any = apply(noise, sources, np.ones(groups), features, method="compose")
        mask = mask.astype(jnp.float32)
        masked_sum = partial(jnp.einsum, "b,bhwz->hwz", mask, precision="highest")
        sums = []
        for z, eps, prior, posterior in zip(
            draw.latents, noise, draw.prior, draw.posterior, strict=True
        ):
            mean = posterior.mean
            kl = _kl(model.num_flows, posterior, prior, z, eps)
            sums.append((masked_sum(kl), masked_sum(mean), masked_sum(mean**2)))
        return sums

    return moment_step


def _kl(num_flows, posterior, prior, z, noise):
    if not num_flows:
        return posterior.kl(prior)
    # Flows keep volumes: the density of z is that of the draw they were given.
    return posterior.log_prob(posterior.sample(noise)) - prior.log_prob(z)


def latent_moments(
    run: Run,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """KL, and variance of the posterior's mean, of every latent variable over images.

    Args:
      run: an `api.Run`.
      batches: of {"image": (B, H, W, C), "mask": (B,)}, B always the same.
      seed: of posterior draws.
      progress: called with the number of images done so far.

    Returns:
      (number of images, a list with (KL in nats, variance) a group, each (h, w, z) float64).

    Raises:
      ValueError: there are fewer than two images.
    """
    step, key = jax.jit(make_moment_step(run.experiment.model)), jax.random.key(seed)
    sums, count, seen = None, 0, 0
    for batch in batches:
        indices = np.arange(seen, seen + len(batch["image"]))
        placed = [sharding.shard_batch(a) for a in (indices, batch["image"], batch["mask"])]
        moments = jax.device_get(step(run.variables, key, *placed))
        # Sums over a split are taken in float64: float32 would lose digits.
        moments = jax.tree.map(lambda a: np.asarray(a, np.float64), moments)
        sums = moments if sums is None else jax.tree.map(np.add, sums, moments)
        count, seen = count + int(batch["mask"].sum()), seen + len(indices)
        if progress:
            progress(count)
    if sums is None or count < 2:
        raise ValueError("a variance needs at least two images")
    return count, [
        (kl / count, np.maximum(squares / count - (mean / count) ** 2, 0.0))
        for kl, mean, squares in sums
    ]


def summarize(run: Run, count: int, moments: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The moments as numbers a group, a scale and in all; see `analyze_run`."""
    hierarchy = run.experiment.model.hierarchy
    num_dims = _num_dims(run)
    groups = []
    for number, (scale, (kl, variance)) in enumerate(
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
                "active_units": int(active_units(channels)),
                "units": channels.size,
                "used_variables": int(used.sum()),
                "variables": used.size,
            }
        )
    scales = [_add_up(groups, scale) for scale in reversed(range(hierarchy.num_scales))]
    totals = {key: sum(group[key] for group in groups) for key in COUNTS}
    thresholds = {
        "active_nats": ACTIVE_NATS,
        "used_nats": USED_NATS,
        "used_variance": USED_VARIANCE,
    }
    return {"num_examples": count, **totals, **thresholds, "scales": scales, "groups": groups}


def _num_dims(run):
    height, width, channels = run.experiment.image_shape
    padding = run.experiment.data.padding
    return (height - 2 * padding) * (width - 2 * padding) * channels


def _add_up(groups, scale):
    mine = [group for group in groups if group["scale"] == scale]
    return {
        "scale": scale,
        "size": mine[0]["size"],
        "num_groups": len(mine),
        **{key: sum(group[key] for group in mine) for key in COUNTS},
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
    """Writes `latents.json`, `latents.png` and `latents.npz` to the folder `out`.

    A unit is a latent channel, active where its KL exceeds 0.1 nats an image (see
    `objective.active_units`). A variable is one channel at one pixel, in use where its KL is above
    0.01 nats and the variance, over images, of its posterior mean above 0.01 (Burda et al. 2016).

    Args:
      run: an `api.Run`.
      out: a folder.
      split: of the data set.
      max_examples: only the first so many images; None takes all.
      seed: of posterior draws and binarisation.
      overwrite: whether to replace files of other settings.

    Returns:
      the summary, as written to `latents.json`.

    Raises:
      ValueError: there are too few images, or the files may not be written; see `outputs.check`.
    """
    charts = extras.load("nvae_jax.latent_charts", "plots", "analyze")
    spec = run.experiment.data
    split, out = pipeline.resolve_split(spec, split), paths.parse(out)
    metadata = run.metadata(split=split, max_examples=max_examples or "all", seed=seed)
    written = [out / f"latents.{ending}" for ending in ("json", "png", "npz")]
    outputs.check(written, metadata, overwrite=overwrite)
    batch_size = pipeline.eval_batch_size(run.batch_size, max_examples)
    batches = pipeline.eval_batches(
        spec, split=split, batch_size=batch_size, seed=seed, max_examples=max_examples
    )
    total = pipeline.num_examples(spec, split)
    total = min(total, max_examples or total)
    with progress.bar("analysing", unit="image", total=total) as bar:
        count, moments = latent_moments(
            run, batches, seed=seed, progress=lambda done: bar.update(done - bar.n)
        )
    summary = {**metadata, **summarize(run, count, moments)}
    files.write_json(written[0], summary)
    pictures.save_png(written[1], charts.draw(summary), metadata)
    arrays = {f"kl_{i:02d}": kl for i, (kl, _) in enumerate(moments)}
    arrays.update({f"variance_{i:02d}": variance for i, (_, variance) in enumerate(moments)})
    pictures.save_arrays(written[2], **arrays, **metadata)
    for scale in summary["scales"]:
        print(
            f"{scale['size']}x{scale['size']}: {scale['num_groups']} group(s), KL {scale['kl']:.2f}"
            f" nats ({scale['kl_bits_per_dim']:.4f} bits/dim), "
            f"{scale['active_units']} of {scale['units']} units active, "
            f"{scale['used_variables']} of {scale['variables']} variables in use"
        )
    print(f"written to {out}: latents.json, latents.png, latents.npz")
    return summary
