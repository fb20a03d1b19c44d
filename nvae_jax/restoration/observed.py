"""What is known of an image: some of its pixels, its means over blocks, its values plus noise."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from nvae_jax.likelihoods import ImageDistribution, crop
from nvae_jax.restoration.smooth import enlarge, fill, shrink

# A decoder that is surer of a pixel than rounding to 8 bits leaves it, (1 / 255)^2 / 12, would not
# give way to what is known, and divides by nothing.
LEAST_VARIANCE = 1e-6
DECAY, REACH = 0.95, 60  # of the decoder's errors from pixel to pixel, and how many pixels far


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
        pixels are known without noise, and otherwise that of a Gaussian of its moments, whose
        blocks err as one."""
        if self.exact:
            edge = pixels.padding
            padded = jnp.pad(self.values, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
            terms = crop(pixels.log_prob_pixels(padded), edge)
            terms = terms.reshape(*terms.shape[:3], -1)
        else:
            mean, own = self._see(*_moments(pixels))
            variance = own + self.variance
            terms = -0.5 * ((self.values - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance))
        return jnp.where(self.known > 0, terms, 0.0).sum((1, 2, 3))

    def restore(self, pixels: ImageDistribution, trust: ArrayLike = 0.0) -> jax.Array:
        """E[x | y, z], (B, H, W, C) in [0, 1]: the mean of p(x | z), of Gaussian pixels, and what y
        says of its error. Errors of neighbours are alike, so this is carried on to where nothing is
        known. What is known without noise comes out as it is.

        Args:
          pixels: p(x | z).
          trust: pixels' standard deviation is taken to be at least so many times the noise's, where
            z is only a guess.
        """
        mean, variance = _moments(pixels)
        seen, own = self._see(mean, jnp.maximum(variance, trust**2 * self.variance))
        error = jnp.where(self.known > 0, own / (own + self.variance) * (self.values - seen), 0.0)
        error = fill(error, self.known, DECAY, REACH)
        return jnp.clip(mean + enlarge(error, self.scale), 0.0, 1.0)

    def _see(self, mean, variance):
        """Mean and variance of S x, where all pixels of a block err together."""
        return shrink(mean, self.scale), shrink(jnp.sqrt(variance), self.scale) ** 2


def _moments(pixels):
    mean, variance = (crop(array, pixels.padding) for array in pixels.moments())
    return mean, jnp.maximum(variance, LEAST_VARIANCE)
