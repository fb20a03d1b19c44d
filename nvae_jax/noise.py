"""Latent noise with one random key per image: image i depends only on the seed and on i, not on the
batch size or the devices."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.models.nvae import NVAE


def image_keys(key: jax.Array, indices: jax.Array | np.ndarray) -> jax.Array:
    """Derives one key per image, (B,), from a key and the images' numbers (B,)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def latent_noise(model: NVAE, keys: jax.Array) -> list[jax.Array]:
    """Draws standard normal noise for every latent group.

    Args:
      model: an `NVAE`.
      keys: one key per image, (B,).

    Returns:
      one (B, h, w, z) array per group, top-down.
    """
    hierarchy = model.hierarchy
    # All groups share one draw, because each call of the random generator takes long to compile.
    flat = jax.vmap(lambda key: jax.random.normal(key, (hierarchy.num_latents,)))(keys)
    return hierarchy.split_latents(flat)


def group_temperatures(hierarchy: Hierarchy, temperature: ArrayLike) -> np.ndarray:
    """Expands a temperature, or one per scale, to one per group.

    Args:
      hierarchy: the model's `Hierarchy`.
      temperature: one number for all scales, or one per scale, coarsest first.

    Returns:
      (groups,) float32, top-down.

    Raises:
      ValueError: if a temperature is not positive and finite, or their number is not the number of
        scales.
    """
    values = np.atleast_1d(np.asarray(temperature, np.float32))
    if values.ndim != 1 or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"temperature must be positive, not {_listed(values)}")
    return by_group(hierarchy, "temperature", values)


def by_group(hierarchy: Hierarchy, name: str, values: np.ndarray) -> np.ndarray:
    """Expands values per scale to values per group.

    Args:
      hierarchy: the model's `Hierarchy`.
      name: name of the values in the error message.
      values: (1,) for all scales, or (scales,), coarsest first.

    Returns:
      (groups,) float32, top-down.

    Raises:
      ValueError: if the number of values is neither 1 nor the number of scales.
    """
    if len(values) not in (1, hierarchy.num_scales):
        raise ValueError(
            f"{name}: {len(values)} values for {hierarchy.num_scales} scale(s); give one for "
            "all or one per scale, coarsest first"
        )
    values = np.broadcast_to(values, hierarchy.num_scales)
    top = hierarchy.num_scales - 1
    return np.array([values[top - scale] for scale in hierarchy.scale_of_group()], np.float32)


def parse_temperatures(texts: Sequence[str], name: str = "temperature") -> list[float]:
    """Converts the values of the flag `name` to numbers.

    Raises:
      ValueError: if there is none, or one is not a finite number.
    """
    wrong = ValueError(f"{name} must be numbers, not {','.join(texts)!r}")
    try:
        values = [float(text) for text in texts]
    except ValueError:
        raise wrong from None
    if not values or not all(map(math.isfinite, values)):
        raise wrong
    return values


def _listed(values):
    return ", ".join(f"{value:g}" for value in np.ravel(values))


def describe_temperature(temperature: ArrayLike) -> str:
    """Formats a temperature, or one per scale, for use in a file name: "0.7" or "1-0.7"."""
    return "-".join(f"{value:g}" for value in np.atleast_1d(temperature))
