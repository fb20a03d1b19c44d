"""What is known of an image: some of its pixels, its means over blocks, its values plus noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from nvae_jax.likelihoods import ImageDistribution, ImagesT, crop


@struct.dataclass
class Observed:
    """y = M S x + n for images x (B, H, W, C) in [0, 1]: S takes means over blocks of `scale`
    pixels each way, M leaves pixels out, and n is Gaussian noise."""

    values: jax.Array | np.ndarray  # y (B, H / scale, W / scale, C)
    known: jax.Array | np.ndarray  # (B, H / scale, W / scale, 1), 1 or 0
    variance: jax.Array | np.ndarray  # of n, (B, 1, 1, 1)
    scale: int = struct.field(pytree_node=False, default=1)
    exact: bool = struct.field(pytree_node=False, default=False)  # no noise, and no blocks

    def log_prob(self, pixels: ImageDistribution) -> jax.Array:
        """log p(y | z) in nats, (B,), given p(x | z). It is that distribution's own where single
        pixels are known without noise, and otherwise that of a Gaussian of its moments."""
        if self.exact:
            edge = pixels.padding
            padded = jnp.pad(self.values, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
            terms = crop(pixels.log_prob_pixels(padded), edge)
            terms = terms.reshape(*terms.shape[:3], -1)
        else:
            difference, variance = self._compare(*_moments(pixels))
            terms = -0.5 * (difference**2 / variance + jnp.log(2.0 * jnp.pi * variance))
        return jnp.where(self.known > 0, terms, 0.0).sum((1, 2, 3))

    def restore(self, pixels: ImageDistribution, trust: ArrayLike = 0.0) -> jax.Array:
        """E[x | y, z], (B, H, W, C) in [0, 1], of Gaussian pixels with the moments of p(x | z):
        what is known without noise comes out as it is. Pixels' standard deviation is taken to be at
        least `trust` times the noise's, where z is only a guess."""
        mean, spread = _moments(pixels)
        # A model that is sure of another value must give way to a known one, too.
        spread = jnp.maximum(spread, jnp.maximum(trust**2 * self.variance, 1e-6))
        difference, variance = self._compare(mean, spread)
        correction = jnp.where(self.known > 0, difference / variance, 0.0) / self.scale**2
        return jnp.clip(mean + spread * grow(correction, self.scale), 0.0, 1.0)

    def _compare(self, mean, spread):
        """y - E[y | z] and Var[y | z]."""
        variance = shrink(spread, self.scale) / self.scale**2 + self.variance
        return self.values - shrink(mean, self.scale), jnp.maximum(variance, 1e-8)


def _moments(pixels):
    return tuple(crop(array, pixels.padding) for array in pixels.moments())


def shrink(images: ImagesT, scale: int) -> ImagesT:
    """Means over blocks of `scale` pixels each way, of (B, H, W, C)."""
    b, h, w, c = images.shape
    blocks: Any = images.reshape(b, h // scale, scale, w // scale, scale, c)
    return blocks.mean((2, 4))


def grow(images: ImagesT, scale: int) -> ImagesT:
    """Each pixel of (B, h, w, C) as a block of `scale` pixels each way."""
    return images.repeat(scale, 1).repeat(scale, 2)
