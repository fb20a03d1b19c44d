"""Independent Bernoulli pixels, for binarised images."""

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike


@struct.dataclass
class Bernoulli:
    """Pixels in {0, 1} with the given `logits` (B, H, W, C)."""

    logits: jax.Array

    def log_prob_pixels(self, x: jax.Array) -> jax.Array:
        """Log probability of each pixel of `x` (B, H, W, C) in {0, 1}, in nats, (B, H, W, C)."""
        return x * self.logits - jax.nn.softplus(self.logits)

    def sample(self, key: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
        """Draws images (B, H, W, C) in {0, 1}; `temperature` divides the logits."""
        draw = jax.random.bernoulli(key, jax.nn.sigmoid(self.logits / temperature))
        return draw.astype(jnp.float32)

    def mean(self) -> jax.Array:
        """The probability of each pixel to be 1, (B, H, W, C)."""
        return jax.nn.sigmoid(self.logits)

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each pixel, (B, H, W, C)."""
        mean = self.mean()
        return mean, mean * (1.0 - mean)
