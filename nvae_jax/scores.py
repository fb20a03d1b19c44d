"""Scores that show whether an image is like the training data (Havtorn et al. 2021).

A model often assigns a higher likelihood to unusual images than to its training images, because
most of a likelihood depends on pixel statistics, which the finest latents explain. The bound L^{>k}
uses the posterior for the coarse latents only; the latents of the k finest scales come from the
prior. The likelihood ratio LLR^{>k} = ELBO - L^{>k} is high if the coarse latents do not describe
the image well.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import inputs
from nvae_jax.evaluate import image_distribution
from nvae_jax.likelihoods import Likelihood, bits_per_dim
from nvae_jax.models.latents import POSTERIOR, PRIOR
from nvae_jax.models.nvae import NVAE
from nvae_jax.noise import image_keys, latent_noise

if TYPE_CHECKING:  # api imports this module
    from nvae_jax.api import Run


def make_score_step(model: NVAE, likelihood: Likelihood) -> Callable[..., Any]:
    """Makes the step (variables, features, key, image numbers (B,), images (B, H, W, C), k) ->
    terms of L^{>k} for one draw; for k = 0 that is the ELBO.

    The terms, in nats, are `bound` (B,), `log_weight` (B,) for importance weighting, and `kl`
    (B, scales), finest scale first and 0 for scales that come from the prior.
    """
    hierarchy = model.hierarchy
    scales = np.array(hierarchy.scale_of_group())

    def score_step(variables, features, key, indices, images, k):
        noise = latent_noise(model, image_keys(key, indices))
        inferred = jnp.asarray(scales) >= k
        draw: Any = model.apply(
            variables,
            noise,
            jnp.where(inferred, POSTERIOR, PRIOR),
            1.0,
            features,
            method="compose",
        )
        groups = zip(draw.latents, noise, draw.prior, draw.posterior, strict=True)
        terms = [_group_terms(model.num_flows, *group) for group in groups]
        kl, weights = (
            jnp.where(inferred[None], jnp.stack(parts, axis=1), 0.0)
            for parts in zip(*terms, strict=True)
        )
        log_likelihood = likelihood(draw.logits).log_prob(images)
        by_scale = [kl[:, scales == scale].sum(1) for scale in range(hierarchy.num_scales)]
        return {
            "bound": log_likelihood - kl.sum(1),
            "log_weight": log_likelihood + weights.sum(1),
            "kl": jnp.stack(by_scale, axis=1),
        }

    return score_step


def _group_terms(num_flows, z, noise, prior, posterior):
    """KL (B,) and log p(z) - log q(z) (B,) of one group's draw."""
    # Flows preserve volume, so z has the same density as the draw before the flows.
    log_q = posterior.log_prob(posterior.sample(noise))
    weight = (prior.log_prob(z) - log_q).sum((1, 2, 3))
    kl = -weight if num_flows else posterior.kl(prior).sum((1, 2, 3))
    return kl, weight


def score(
    run: "Run",
    images: ArrayLike,
    *,
    num_samples: int = 1,
    scales: Sequence[int] | None = None,
    seed: int = 0,
    numbers: ArrayLike | None = None,
) -> dict[str, np.ndarray]:
    """Scores each image.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1]; a model of binary images binarises them at random.
      num_samples: K, number of draws per image. All bounds except `log_p` are averages over them.
      scales: every k for which to compute L^{>k}, from 1 to the number of scales - 1; None uses
        all.
      seed: seed of the draws and of binarisation.
      numbers: (N,) numbers of the images, which their random draws depend on; None counts from 0.

    Returns:
      {name: (N,) float64} in nats: `elbo`; `log_p`, the importance-weighted bound over K draws
      (Burda et al. 2016); `kl_scale_S`, the KL of scale S (0 is the finest); and for every k
      `l_gt_k`, L^{>k}, and `llr_gt_k`, LLR^{>k} = ELBO - L^{>k}. Each score is also returned in
      bits per image value, as NAME_bits_per_dim (NAME_density_bits_per_dim if the likelihood is a
      density; see docs/metrics.md).

    Raises:
      ValueError: if there is no such k, K is less than 1, or the images do not fit the model.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    cuts = (0, *check_scales(run, scales))
    images = inputs.check(images, run.experiment.data)
    numbers = np.arange(len(images)) if numbers is None else np.asarray(numbers)
    prepared = [
        run.prepare(image[None], seed, int(n)) for image, n in zip(images, numbers, strict=True)
    ]
    batches = {"image": np.concatenate(prepared), "index": numbers}
    step = partial(_average, run, cuts, num_samples, jax.random.key(seed))
    return _named(run, cuts, run.map_batches(step, batches))


def parse_scales(words: Sequence[str] | None) -> list[int] | None:
    """Converts the values of a flag to numbers; returns None for None.

    Raises:
      ValueError: if there is none, or one is not a whole number.
    """
    if words is None:
        return None
    if not words or not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"scales must be whole numbers, not {','.join(words)!r}")
    return [int(word) for word in words]


def check_scales(run: "Run", scales: Sequence[int] | None) -> tuple[int, ...]:
    """The values of k for `score`; None means all.

    Raises:
      ValueError: if the model has no L^{>k} for one of them.
    """
    known = tuple(range(1, run.experiment.model.hierarchy.num_scales))
    for k in scales or ():
        if k not in known:
            allowed = f"k is from 1 to {known[-1]}" if known else "there is none"
            raise ValueError(
                f"scales: there is no L^{{>{k}}}: for {len(known) + 1} scale(s) {allowed}"
            )
    return known if scales is None else tuple(dict.fromkeys(scales))


def _average(run, cuts, num_samples, key, batch):
    """{k: terms of L^{>k}} averaged over the draws; of the weights, the logarithm of the mean."""
    features = run.programs.encode(run.variables, batch["image"])
    draws = {k: [] for k in cuts}
    for number in range(num_samples):
        arguments = jax.random.fold_in(key, number), batch["index"], batch["image"]
        for k in cuts:
            terms = run.programs.score(run.variables, features, *arguments, k)
            draws[k].append(jax.block_until_ready(terms))  # limits the memory in use
    return {k: _mean(terms) for k, terms in draws.items()}


def _mean(draws):
    stacked = jax.tree.map(lambda *parts: np.stack(parts).astype(np.float64), *draws)
    log_weight = np.logaddexp.reduce(stacked.pop("log_weight")) - np.log(len(draws))
    return {name: value.mean(0) for name, value in stacked.items()} | {"log_weight": log_weight}


def _named(run, cuts, terms):
    elbo, kl = terms[0]["bound"], terms[0]["kl"]
    found = {"elbo": elbo, "log_p": terms[0]["log_weight"]}
    found |= {f"kl_scale_{scale}": kl[:, scale] for scale in range(kl.shape[1])}
    for k in cuts[1:]:
        found[f"l_gt_{k}"] = terms[k]["bound"]
        found[f"llr_gt_{k}"] = elbo - terms[k]["bound"]
    return found | _in_bits(run, found)


def _in_bits(run, found: Mapping[str, np.ndarray]):
    images = image_distribution(run.experiment.model, run.experiment.likelihood)
    return {
        f"{name}_{images.bits_key}": bits_per_dim(value, images.num_dims)
        for name, value in found.items()
    }
