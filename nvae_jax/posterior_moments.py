"""Moments of the posterior over images, of every latent variable: what `analyze` counts from."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax import sharding
from nvae_jax.api import Run
from nvae_jax.interrupt import interruptible
from nvae_jax.models.latents import POSTERIOR
from nvae_jax.models.nvae import NVAE
from nvae_jax.noise import image_keys, latent_noise
from nvae_jax.programs import shared


class Moments(NamedTuple):
    """Of each variable of a group, (h, w, z) float64, over images."""

    kl: np.ndarray  # nats
    variance: np.ndarray  # of the posterior's mean
    prior_gap: np.ndarray  # nats, (h, w): of a pixel's channels together; see `prior_gap`


def make_moment_step(model: NVAE) -> Callable[..., Any]:
    """(variables, key, image numbers (B,), images (B, H, W, C), mask (B,)) -> for each group sums
    over the images, of (h, w, z): KL in nats, posterior mean and its square, the draw as noise of
    the prior, and of (h, w, z, z) products of its channels."""

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
            standard = (z - prior.mean) / prior.scale
            products = jnp.einsum("b,bhwi,bhwj->hwij", mask, *[standard] * 2, precision="highest")
            sums.append((*map(masked_sum, (kl, mean, mean**2, standard)), products))
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
) -> tuple[int, list[Moments]]:
    """KL, variance of the posterior's mean and gap of the prior, of every variable over images.

    Args:
      run: an `api.Run`.
      batches: this host's parts of {"image": (B, H, W, C), "mask": (B,)}, B always the same and
        divided by the devices, which share them.
      seed: of posterior draws.
      progress: called with the number of images done so far.

    Returns:
      (number of images, a list with `Moments` for each group).

    Raises:
      ValueError: there are fewer than two images.
    """
    mesh, key = sharding.make_mesh(sharding.MeshSettings()), jax.random.key(seed)
    step = _counting(run.experiment.model, mesh)
    sums, count, seen = None, 0, 0
    for batch in interruptible(batches):
        part = len(batch["image"])
        indices = np.arange(part, dtype=np.int32) + seen + part * jax.process_index()
        arrays = (indices, batch["image"], batch["mask"])
        placed = [sharding.to_devices(mesh, array) for array in arrays]
        moments, added = jax.device_get(step(run.variables, key, *placed))
        # Sums over a split are taken in float64: float32 would lose digits.
        moments = jax.tree.map(lambda a: np.asarray(a, np.float64), moments)
        sums = moments if sums is None else jax.tree.map(np.add, sums, moments)
        count, seen = count + int(added), seen + part * jax.process_count()
        if progress:
            progress(count)
    if sums is None or count < 2:  # of images that could be read
        raise ValueError("a variance needs at least two images")
    return count, [
        Moments(
            kl / count,
            _variance(count, mean, squares),
            prior_gap(count, standard, products),
        )
        for kl, mean, squares, standard, products in sums
    ]


@shared
def _counting(model, mesh):
    """A compiled moment step that gives the number of images, too, both to every device."""
    step = make_moment_step(model)

    def counting(variables, key, indices, images, mask):
        return step(variables, key, indices, images, mask), mask.sum()

    return jax.jit(counting, out_shardings=sharding.replicated(mesh))


def _variance(count, total, squares):
    return np.maximum(squares / count - (total / count) ** 2, 0.0)


def prior_gap(count: int, total: np.ndarray, products: np.ndarray) -> np.ndarray:
    """How far posterior draws of all images, taken together, are from the prior, in nats.

    Draws as noise of the prior would have mean 0 and covariance I. KL(N(m, C) || N(0, I)) of a
    pixel's channels is at most the KL of their distribution from the prior's, and, summed over all
    pixels, at most KL(q(z) || p(z)): the part of a model's KL that says nothing about the image
    (Hoffman & Johnson 2016), and that samples suffer from. What as many draws of the prior have on
    average is taken off.

    Args:
      count: of draws.
      total: their sums, (h, w, z).
      products: sums of products of channels, (h, w, z, z).

    Returns:
      (h, w); NaN where the draws are no more than the channels.
    """
    channels, mean = total.shape[-1], total / count
    if count <= channels:
        return np.full(total.shape[:-1], np.nan)
    covariance = products / count - mean[..., :, None] * mean[..., None, :]
    variances = np.maximum(np.linalg.eigvalsh(covariance), 1e-12)
    nats = 0.5 * ((variances - 1 - np.log(variances)).sum(-1) + (mean**2).sum(-1))
    return nats - channels * (channels + 3) / (4 * count)
