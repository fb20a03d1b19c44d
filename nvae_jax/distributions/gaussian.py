"""Gaussian pixels: a density on [-1, 1] rather than a probability of discrete pixel values."""

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from nvae_jax.distributions.normal import Normal


@struct.dataclass
class GaussianPixels:
    """Pixels with means and log-scales from `logits` (B, H, W, 2C): C means, then C log-scales."""

    logits: jax.Array

    @property
    def normal(self) -> Normal:
        """The distribution of the pixels on [-1, 1], with parameters (B, H, W, C)."""
        return Normal.from_conv(self.logits)

    def log_prob_pixels(self, x: jax.Array) -> jax.Array:
        """Log density on [-1, 1] of each value of `x` (B, H, W, C) in [0, 1], in nats."""
        return self.normal.log_prob(2.0 * x - 1.0)

    def sample(self, key: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
        """Draws images (B, H, W, C), clipped to [0, 1]; `temperature` multiplies the scales."""
        noise = jax.random.normal(key, self.normal.mean.shape)
        return _to_unit(self.normal.sample(noise, temperature))

    def mean(self) -> jax.Array:
        """The mean image, clipped to [0, 1], (B, H, W, C)."""
        return _to_unit(self.normal.mean)

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each value, each (B, H, W, C), scaled to images in [0, 1] but not
        clipped to that range."""
        return (self.normal.mean + 1.0) / 2.0, (self.normal.scale / 2.0) ** 2


def _to_unit(x):
    return (jnp.clip(x, -1.0, 1.0) + 1.0) / 2.0
