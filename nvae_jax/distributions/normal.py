"""The diagonal Gaussian of every latent group, with bounded parameters (paper, section 3.2)."""

from typing import Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

BOUND = 5.0
MIN_SCALE = 0.01
HALF_LOG_TWO_PI = 0.9189385332046727


def soft_clamp(x: jax.Array) -> jax.Array:
    """Squashes `x` smoothly into (-5, 5); close to the identity near zero."""
    return BOUND * jnp.tanh(x / BOUND)


@struct.dataclass
class Normal:
    """A diagonal Gaussian with a `mean` and a standard deviation `scale` per variable."""

    mean: jax.Array
    scale: jax.Array

    @classmethod
    def from_conv(cls, params: jax.Array) -> Self:
        """Makes a Normal from a convolution's output (..., 2z): means, then log-scales; float32."""
        mean, log_scale = jnp.split(params.astype(jnp.float32), 2, axis=-1)
        return cls(soft_clamp(mean), jnp.exp(soft_clamp(log_scale)) + MIN_SCALE)

    def sample(self, noise: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
        """Returns mean + temperature * scale * noise, with standard normal `noise`."""
        return self.mean + temperature * self.scale * noise

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log density of each entry of `x`, in nats; not summed."""
        normed = (x - self.mean) / self.scale
        return -0.5 * normed**2 - HALF_LOG_TWO_PI - jnp.log(self.scale)

    def kl(self, other: Self) -> jax.Array:
        """KL(self || other) of each entry, in nats; not summed."""
        shift = (self.mean - other.mean) / other.scale
        ratio = self.scale / other.scale
        return 0.5 * (shift**2 + ratio**2) - 0.5 - jnp.log(ratio)
