"""Rate and distortion by the number of latent groups that come from the posterior.

Images are decoded with their k coarsest groups from the posterior and the others from the prior.
With k = 0 these are samples; with all groups they are reconstructions. As k grows, the rate
increases by the KL of each group and the distortion decreases. The distance of the decoded images
from the data shows how good the prior of the remaining groups is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax import frechet, sharding
from nvae_jax.api import Run
from nvae_jax.data import pipeline
from nvae_jax.interrupt import interruptible
from nvae_jax.likelihoods import Likelihood, bits_per_dim, crop
from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.models.latents import POSTERIOR, PRIOR
from nvae_jax.models.nvae import NVAE
from nvae_jax.noise import image_keys, latent_noise
from nvae_jax.programs import shared
from nvae_jax.reconstruct import groups_by_scale

MAX_POINTS = 12  # numbers of groups to measure, besides those of whole scales
LARGEST = 32  # larger images are compared at this size, in pixels
COMPONENTS = 32  # principal components that images are compared by


def group_counts(hierarchy: Hierarchy) -> list[int]:
    """The numbers of groups to measure: those of whole scales, and some in between."""
    groups = len(hierarchy.scale_of_group())
    between = np.linspace(0, groups, min(groups, MAX_POINTS) + 1).round().astype(int)
    return sorted({*between.tolist(), *groups_by_scale(hierarchy)})


def make_partial_step(model: NVAE, likelihood: Likelihood, padding: int) -> Callable[..., Any]:
    """Makes a step that decodes images with each group from the posterior or the prior.

    Returns:
      (variables, key, image numbers (B,), images (B, H, W, C), sources (groups,)) ->
      (-log p(x|z) in nats (B,), mean squared error (B,), the decoder's means as small images
      (B, h, w, C)).
    """

    def partial_step(variables, key, indices, images, sources):
        noise, apply = (
            latent_noise(model, image_keys(key, indices)),
            partial(model.apply, variables),
        )
        features = apply(images, method="encode")
        draw: Any = apply(noise, sources, np.ones(len(noise)), features, method="compose")
        pixels = likelihood(draw.logits)
        mean = crop(pixels.mean(), padding)
        error = jnp.square(mean - crop(images, padding)).mean((1, 2, 3))
        return -pixels.log_prob(images), error, shrink(mean)

    return partial_step


def shrink(images: jax.Array | np.ndarray) -> jax.Array:
    """Resizes images (N, H, W, C) to at most `LARGEST` pixels per side."""
    count, height, width, channels = images.shape
    size = (min(height, LARGEST), min(width, LARGEST))
    return jax.image.resize(images, (count, *size, channels), "linear")


def measure(
    run: Run,
    kl_by_group: Sequence[float],
    *,
    split: str = "test",
    max_examples: int = 1000,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> list[dict[str, Any]]:
    """Measures rate, distortion and the distance from the data by the number of groups from the
    posterior.

    Args:
      run: an `api.Run`.
      kl_by_group: KL of each group in nats for the same images, which is the rate.
      split: split of the data set.
      max_examples: number of images to use, from the first.
      seed: seed of the draws and of binarisation.
      progress: called with 1 after each number of groups; there are len(group_counts(...)).

    Returns:
      a dict for each number in `group_counts`, with the keys `groups`; `whole_scales`, the number
      of scales if these groups are whole scales, otherwise None; `rate` in nats and
      `rate_bits_per_dim`; `reconstruction`, -log p(x|z) in nats; `rmse` of the decoder's means in
      [0, 1]; and `frechet`, the Fréchet distance of these means from the split's images.
    """
    spec, hierarchy = run.experiment.data, run.experiment.model.hierarchy
    scales = groups_by_scale(hierarchy)
    load = partial(_images, split=split, max_examples=max_examples, seed=seed)
    images, originals = load(spec), np.asarray(shrink(load(spec.unbinarized())))
    axes = frechet.principal_axes(originals, COMPONENTS)
    num_dims = int(np.prod(crop(images[:1], spec.padding).shape))
    step = _program(run.experiment.model, run.experiment.likelihood, spec.padding)
    points = []
    for groups in group_counts(hierarchy):
        reconstruction, error, means = _decode(run, step, images, groups, seed)
        rate = float(np.sum(kl_by_group[:groups]))
        points.append(
            {
                "groups": groups,
                "whole_scales": scales.index(groups) if groups in scales else None,
                "rate": rate,
                "rate_bits_per_dim": float(bits_per_dim(rate, num_dims)),
                "reconstruction": float(reconstruction.mean(dtype=np.float64)),
                "rmse": float(np.sqrt(error.mean(dtype=np.float64))),
                "frechet": frechet.picture_distance(means, originals, axes),
            }
        )
        if progress:
            progress(1)
    return points


def _images(spec, *, split, max_examples, seed):
    batches = pipeline.eval_batches(
        spec, split=split, batch_size=max_examples, seed=seed, max_examples=max_examples
    )
    return np.concatenate([batch["image"][batch["mask"]] for batch in batches])


@shared
def _program(model, likelihood, padding):
    return jax.jit(sharding.gathered(make_partial_step(model, likelihood, padding)))


def _decode(run, step, images, groups, seed):
    """Applies the step to all images with `groups` groups from the posterior."""
    sources = np.where(np.arange(run.num_groups) < groups, POSTERIOR, PRIOR).astype(np.int32)
    size, results = sharding.round_up(None, min(run.batch_size, len(images))), []
    for start in interruptible(range(0, len(images), size)):
        # The last batch is filled up with copies of the last image.
        indices = np.minimum(np.arange(start, start + size), len(images) - 1)
        placed = [sharding.shard_batch(array) for array in (indices, images[indices])]
        result = jax.device_get(step(run.variables, jax.random.key(seed), *placed, sources))
        results.append([array[: len(images) - start] for array in result])
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]
