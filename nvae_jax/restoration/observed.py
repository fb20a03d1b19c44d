"""What is known of an image: some of its pixels, means over blocks, or values with noise."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from nvae_jax.likelihoods import ImageDistribution, crop
from nvae_jax.restoration.smooth import enlarge, fill, shrink

# About the variance of rounding to 8 bits, (1 / 255)^2 / 12. With a smaller variance, the decoder's
# pixels would not be corrected by what is known, and with 0 there would be a division by 0.
MIN_VARIANCE = 1e-6
DECAY, REACH = 0.95, 60  # the decoder's errors decay by this factor per pixel, up to REACH pixels


@struct.dataclass
class Observed:
    """y = M S x + n for images x (B, H, W, C) in [0, 1]: S takes means over blocks of `scale` x
    `scale` pixels, M removes the unknown pixels, and n is Gaussian noise."""

    values: jax.Array | np.ndarray  # y (B, H / scale, W / scale, C)
    known: jax.Array | np.ndarray  # (B, H / scale, W / scale, 1), 1 or 0
    variance: jax.Array | np.ndarray  # of n, (B, 1, 1, 1)
    scale: int = struct.field(pytree_node=False, default=1)
    exact: bool = struct.field(pytree_node=False, default=False)  # no noise, and no blocks

    def log_prob(self, pixels: ImageDistribution) -> jax.Array:
        """log p(y | z) in nats, (B,), for the distribution p(x | z) in `pixels`. It is exact if
        single pixels are known without noise. Otherwise p(x | z) is approximated by a Gaussian with
        the same moments, with fully correlated errors within a block."""
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
        """E[x | y, z], (B, H, W, C) in [0, 1]: the mean of p(x | z), with pixels taken to be
        Gaussian, corrected by y. Errors of neighbouring pixels are similar, so corrections spread
        to unknown pixels. Pixels that are known without noise keep their values.

        Args:
          pixels: p(x | z).
          trust: lower limit on the standard deviation of pixels, as a multiple of the noise's; it
            is needed if z is only a guess.
        """
        mean, variance = _moments(pixels)
        seen, own = self._see(mean, jnp.maximum(variance, trust**2 * self.variance))
        error = jnp.where(self.known > 0, own / (own + self.variance) * (self.values - seen), 0.0)
        error = fill(error, self.known, DECAY, REACH)
        return jnp.clip(mean + enlarge(error, self.scale), 0.0, 1.0)

    def _see(self, mean, variance):
        """Mean and variance of S x, with fully correlated errors within a block."""
        return shrink(mean, self.scale), shrink(jnp.sqrt(variance), self.scale) ** 2


def _moments(pixels):
    mean, variance = (crop(array, pixels.padding) for array in pixels.moments())
    return mean, jnp.maximum(variance, MIN_VARIANCE)
