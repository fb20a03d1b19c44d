"""Smooth interpolation: into unknown pixels, and to a higher resolution."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from nvae_jax.likelihoods import ImagesT


def fill(values: ArrayLike, known: ArrayLike, decay: float, rounds: int) -> jax.Array:
    """Fills unknown pixels of (B, H, W, C) with `decay` times the mean of their four neighbours.

    Jacobi's method solves Laplace's equation or, with `decay` below 1, the screened Poisson
    equation, in which the influence of known pixels decreases with the distance.

    Args:
      values: (B, H, W, C); those of unknown pixels are the initial values.
      known: (B, H, W, 1), true for pixels that keep their values.
      decay: from 0 to 1.
      rounds: iterations, each of which reaches one pixel further; none are done if all are known.
    """
    values, known = jnp.asarray(values), jnp.asarray(known) > 0

    def one_round(_, filled):
        wide = jnp.pad(filled, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        vertical = wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1]
        horizontal = wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
        return jnp.where(known, values, decay * (vertical + horizontal) / 4)

    return jax.lax.fori_loop(0, jnp.where(known.all(), 0, rounds), one_round, values)


def enlarge(values: ArrayLike, scale: int) -> jax.Array:
    """Enlarges (B, h, w, C) to `scale` times the resolution by bicubic interpolation, corrected so
    that the means over blocks are the given values."""
    values = jnp.asarray(values)
    if scale == 1:
        return values
    larger = bicubic(values, scale)
    return larger + grow(values - shrink(larger, scale), scale)


def bicubic(values: ArrayLike, scale: int) -> jax.Array:
    """Enlarges (B, h, w, C) to `scale` times the resolution by bicubic interpolation."""
    b, h, w, c = jnp.shape(values)
    return jax.image.resize(values, (b, h * scale, w * scale, c), "cubic")


def shrink(images: ImagesT, scale: int) -> ImagesT:
    """Means of (B, H, W, C) over blocks of `scale` x `scale` pixels."""
    b, h, w, c = images.shape
    blocks: Any = images.reshape(b, h // scale, scale, w // scale, scale, c)
    return blocks.mean((2, 4))


def grow(images: ImagesT, scale: int) -> ImagesT:
    """Repeats each pixel of (B, h, w, C) as a block of `scale` x `scale` pixels."""
    return images.repeat(scale, 1).repeat(scale, 2)
