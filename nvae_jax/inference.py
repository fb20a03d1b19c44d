"""The compiled passes of a trained model, and how they are applied to any number of images."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from nvae_jax import progress, scores, sharding, steps
from nvae_jax.interrupt import interruptible
from nvae_jax.likelihoods import Likelihood
from nvae_jax.models.nvae import NVAE
from nvae_jax.noise import image_keys, latent_noise
from nvae_jax.programs import shared


class Programs:
    """The compiled passes of a model, shared by runs that differ only in their variables.

    Attributes:
      compose: (variables, key, sources, temperatures, batch) -> (images, latents, latents
        standardised by the prior); see `api.Run.compose`.
      log_weights: (variables, key, batch) -> log p(x, z) / q(z | x) in nats, (B,).
      encode: see `steps.make_encode_step`.
      score: see `scores.make_score_step`.
    """

    def __init__(self, model: NVAE, likelihood: Likelihood):
        self._model, self._likelihood = model, likelihood
        self.compose = jax.jit(sharding.gathered(self._compose))
        self.log_weights = jax.jit(sharding.gathered(self._log_weights))
        self.encode = jax.jit(steps.make_encode_step(model))
        self.score = jax.jit(sharding.gathered(scores.make_score_step(model, likelihood)))

    def _compose(self, variables, key, sources, temperatures, batch):
        noise = latent_noise(self._model, image_keys(key, batch["index"]))
        noise[: len(batch["latents"])] = batch["latents"]
        apply, features = partial(self._model.apply, variables), None
        if "image" in batch:
            features = apply(batch["image"], method="encode")
        draw: Any = apply(noise, sources, temperatures, features, method="compose")
        pairs = zip(draw.latents, draw.prior, strict=True)
        standard = [(z - prior.mean) / prior.scale for z, prior in pairs]
        return self._likelihood(draw.logits).mean(), draw.latents, standard

    def _log_weights(self, variables, key, batch):
        noise = latent_noise(self._model, image_keys(key, batch["index"]))
        out = self._model.apply(variables, batch["image"], noise=noise)
        return steps.bound_terms(self._likelihood, out, batch["image"])["log_weight"]


@shared
def programs(model: NVAE, likelihood: Likelihood) -> Programs:
    """The `Programs` of a model; the same object for equal models."""
    return Programs(model, likelihood)


def map_batches(step: Callable[[Any], Any], arrays: Mapping[str, Any], batch_size: int) -> Any:
    """Applies a step to all rows of arrays in batches, so that one program serves any number.

    Args:
      step: maps a tree of arrays with B rows to a tree of arrays with B rows.
      arrays: a tree of arrays with N rows, one of which has the key "index".
      batch_size: B, which is rounded up to a multiple of the number of devices.

    Returns:
      a tree of NumPy arrays with N rows.
    """
    rows, results = len(arrays["index"]), []
    size = sharding.round_up(None, batch_size)
    starts = range(0, rows, size)
    if len(starts) > 1:
        starts = progress.bar("computing", starts, unit="batch")
    for start in interruptible(starts):
        stop = min(start + size, rows)
        place = partial(_place_rows, start=start, stop=stop, size=size)
        result = jax.device_get(step(jax.tree.map(place, arrays)))
        results.append(jax.tree.map(partial(_first_rows, stop - start), result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def _place_rows(array, *, start, stop, size):
    """Puts rows of `array` on the devices, filled up to `size` rows by repeating the first one."""
    part = array[start:stop]
    padding = np.repeat(part[:1], size - len(part), axis=0)
    return sharding.shard_batch(np.concatenate([part, padding]))


def _first_rows(count, array):
    return array[:count]
