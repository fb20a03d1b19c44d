"""Is an image like the training data? Scores of single images that tell (Havtorn et al. 2021).

A model often finds strange images likelier than those it was trained on: most of a likelihood is
pixel statistics, which the latents nearest to the image explain. L^{>k} takes the posterior of the
coarse latents alone: its latents below scale k, those of the k finest scales, come from the prior.
How much it is below the ELBO is the likelihood ratio LLR^{>k}, high where the coarse latents do not
know the image.
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

if TYPE_CHECKING:  # which imports this file
    from nvae_jax.api import Run


def make_score_step(model: NVAE, likelihood: Likelihood) -> Callable[..., Any]:
    """(variables, features, key, image numbers (B,), images (B, H, W, C), k) -> the terms of L^{>k}
    for one draw, in nats: `bound` (B,), `log_weight` (B,) for importance weighting, and `kl`
    (B, scales), finest first and 0 where the prior is drawn from. With k = 0 it is the ELBO."""
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
    # Flows keep volumes: the density of z is that of the draw they were given.
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
    """Scores of each image, every one of them in nats and, as NAME_bits_per_dim, in bits per image
    value (`density_bits_per_dim` where the likelihood is a density; see docs/metrics.md).

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1]; a model of binary images binarises them at random.
      num_samples: K, draws an image. The bounds are averages over them, but for `log_p`.
      scales: every k to give L^{>k} of, from 1 to the number of scales - 1; None takes all.
      seed: of the draws, and of binarisation.
      numbers: (N,) of the images, for their random numbers; None counts from 0.

    Returns:
      {name: (N,) float64}, with `elbo`; `log_p`, the importance-weighted bound over K draws (Burda
      et al. 2016); `kl_scale_S`, the KL of scale S (0 is the finest); and for every k `l_gt_k`,
      L^{>k}, and `llr_gt_k`, LLR^{>k} = ELBO - L^{>k}.

    Raises:
      ValueError: there is no such k, K is less than 1, or the images are none for this model.
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
    """Numbers from the words of a flag. Raises ValueError for one that is none, and for no word."""
    if words is None:
        return None
    if not words or not all(word.strip().isdecimal() for word in words):
        raise ValueError(f"scales must be whole numbers, not {','.join(words)!r}")
    return [int(word) for word in words]


def check_scales(run: "Run", scales: Sequence[int] | None) -> tuple[int, ...]:
    """Every k of `score`. Raises ValueError where the model has no L^{>k}."""
    known = tuple(range(1, run.experiment.model.hierarchy.num_scales))
    for k in scales or ():
        if k not in known:
            there = f"k is from 1 to {known[-1]}" if known else "there is none"
            raise ValueError(
                f"scales: there is no L^{{>{k}}}: of a model of {len(known) + 1} scale(s) {there}"
            )
    return known if scales is None else tuple(dict.fromkeys(scales))


def _average(run, cuts, num_samples, key, batch):
    """{k: terms of L^{>k}}, averaged over the draws; log weights as the mean weight's logarithm."""
    features = run.programs.encode(run.variables, batch["image"])
    draws = {k: [] for k in cuts}
    for number in range(num_samples):
        arguments = jax.random.fold_in(key, number), batch["index"], batch["image"]
        for k in cuts:
            terms = run.programs.score(run.variables, features, *arguments, k)
            draws[k].append(jax.block_until_ready(terms))  # memory does not grow with the draws
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
