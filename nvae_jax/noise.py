"""Latent noise with a key an image: what image i looks like depends on the seed and on i alone,
whatever the batch it is drawn in and the devices that draw it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.models.nvae import NVAE


def image_keys(key: jax.Array, indices: jax.Array | np.ndarray) -> jax.Array:
    """A key for each image: (B,) keys from one key and the images' numbers (B,)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def latent_noise(model: NVAE, keys: jax.Array) -> list[jax.Array]:
    """Standard normal noise of every latent group.

    Args:
      model: an `NVAE`.
      keys: one an image, (B,).

    Returns:
      one (B, h, w, z) array a group, top-down.
    """
    hierarchy = model.hierarchy
    # One draw for all groups: each call of the generator takes long to compile.
    flat = jax.vmap(lambda key: jax.random.normal(key, (hierarchy.num_latents,)))(keys)
    return hierarchy.split_latents(flat)


def group_temperatures(hierarchy: Hierarchy, temperature: ArrayLike) -> np.ndarray:
    """A temperature for each group.

    Args:
      hierarchy: of the model.
      temperature: one number for all, or one a scale, coarsest first.

    Returns:
      (groups,) float32, top-down.

    Raises:
      ValueError: a temperature is not positive and finite, or there is not one a scale.
    """
    values = np.atleast_1d(np.asarray(temperature, np.float32))
    if values.ndim != 1 or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"temperature must be positive, not {_listed(values)}")
    return by_group(hierarchy, "temperature", values)


def by_group(hierarchy: Hierarchy, name: str, values: np.ndarray) -> np.ndarray:
    """(groups,) float32, top-down, of one number for all, or one a scale, coarsest first. Raises
    ValueError where there is not one a scale."""
    if len(values) not in (1, hierarchy.num_scales):
        raise ValueError(
            f"{name}: {len(values)} values for {hierarchy.num_scales} scale(s); give one for "
            "all or one a scale, coarsest first"
        )
    values = np.broadcast_to(values, hierarchy.num_scales)
    top = hierarchy.num_scales - 1
    return np.array([values[top - scale] for scale in hierarchy.scale_of_group()], np.float32)


def parse_temperatures(texts: Sequence[str], name: str = "temperature") -> list[float]:
    """Numbers from the words of the flag `name`. Raises ValueError for one that is none, and for no
    word."""
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
    """A temperature, or one a scale, as text that can be part of a file's name: 0.7 or 1-0.7."""
    return "-".join(f"{value:g}" for value in np.atleast_1d(temperature))
