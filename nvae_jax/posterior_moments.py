"""Moments of every latent variable over images, from which `analyze` computes its results."""

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
    """Moments of the variables of one group over images, float64."""

    kl: np.ndarray  # (h, w, z), mean KL in nats
    variance: np.ndarray  # (h, w, z), variance of the posterior's mean
    prior_gap: np.ndarray  # (h, w), in nats, of all channels of a pixel; see `prior_gap`


def make_moment_step(model: NVAE) -> Callable[..., Any]:
    """Makes the step (variables, key, image numbers (B,), images (B, H, W, C), mask (B,)) -> sums.

    The sums over the images are, for each group: KL in nats, posterior mean, its square, and the
    posterior draw standardised by the prior, each (h, w, z); and products of pairs of channels of
    that standardised draw, (h, w, z, z).
    """

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
    # Flows preserve volume, so z has the same density as the draw before the flows.
    return posterior.log_prob(posterior.sample(noise)) - prior.log_prob(z)


def latent_moments(
    run: Run,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> tuple[int, list[Moments]]:
    """Computes the moments of every latent variable over images, on all devices.

    Args:
      run: an `api.Run`.
      batches: this host's shards of {"image": (B, H, W, C), "mask": (B,)}. B is the same for all
        batches, and the number of devices divides it.
      seed: seed of posterior draws.
      progress: called with the number of images done so far.

    Returns:
      (number of images, a list with `Moments` for each group).

    Raises:
      ValueError: if there are fewer than two images.
    """
    mesh, key = sharding.make_mesh(sharding.MeshSettings()), jax.random.key(seed)
    step = _compiled_step(run.experiment.model, mesh)
    sums, count, seen = None, 0, 0
    for batch in interruptible(batches):
        part = len(batch["image"])
        indices = np.arange(part, dtype=np.int32) + seen + part * jax.process_index()
        arrays = (indices, batch["image"], batch["mask"])
        placed = [sharding.to_devices(mesh, array) for array in arrays]
        moments, added = jax.device_get(step(run.variables, key, *placed))
        # Sums over a split are computed in float64, because float32 would lose digits.
        moments = jax.tree.map(lambda a: np.asarray(a, np.float64), moments)
        sums = moments if sums is None else jax.tree.map(np.add, sums, moments)
        count, seen = count + int(added), seen + part * jax.process_count()
        if progress:
            progress(count)
    if sums is None or count < 2:  # count excludes images that could not be read
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
def _compiled_step(model, mesh):
    """The compiled moment step, which also returns the number of images."""
    step = make_moment_step(model)

    def step_and_count(variables, key, indices, images, mask):
        return step(variables, key, indices, images, mask), mask.sum()

    return jax.jit(step_and_count, out_shardings=sharding.replicated(mesh))


def _variance(count, total, squares):
    return np.maximum(squares / count - (total / count) ** 2, 0.0)


def prior_gap(count: int, total: np.ndarray, products: np.ndarray) -> np.ndarray:
    """A lower bound on the distance of the aggregate posterior from the prior, in nats.

    If the aggregate posterior q(z) were equal to the prior, draws standardised by the prior would
    have mean 0 and covariance I. For the channels of one pixel, KL(N(m, C) || N(0, I)) with the
    actual mean m and covariance C is a lower bound on the KL between their distribution and the
    prior. Its sum over all pixels is a lower bound on KL(q(z) || p(z)), the part of a model's KL
    that carries no information about the image (Hoffman & Johnson 2016) and that makes samples
    worse. The expected value for as many draws from the prior is subtracted.

    Args:
      count: number of draws.
      total: (h, w, z), sums of the standardised draws.
      products: (h, w, z, z), sums of products of their channels.

    Returns:
      (h, w); NaN if there are no more draws than channels.
    """
    channels, mean = total.shape[-1], total / count
    if count <= channels:
        return np.full(total.shape[:-1], np.nan)
    covariance = products / count - mean[..., :, None] * mean[..., None, :]
    variances = np.maximum(np.linalg.eigvalsh(covariance), 1e-12)
    nats = 0.5 * ((variances - 1 - np.log(variances)).sum(-1) + (mean**2).sum(-1))
    return nats - channels * (channels + 3) / (4 * count)
