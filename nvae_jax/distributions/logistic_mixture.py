"""Mixtures of discretised logistics for pixels (Salimans et al., PixelCNN++, 2017), for RGB, where
each colour is conditioned on the previous ones, and for grey."""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

MIN_LOG_SCALE = -7.0  # for values of up to 8 bits
# For a smaller probability of a bin, float32 differences of sigmoids are only rounding errors.
MIN_BIN_MASS = 1e-5
# Colours in [-1, 1] above this count as the highest value. Of 256 values these are the last two;
# published numbers are computed in this way. Grey values do not need it.
PUBLISHED_HIGHEST = 0.99


@struct.dataclass
class LogisticMixture:
    """RGB pixels of `num_bits` bits from `logits` (B, H, W, 10M).

    The channels are M mixture logits, then for each of three colour slots M means, M log-scales
    and M coefficients. Green's mean adds coefficient 0 times red; blue's adds coefficient 1 times
    red and coefficient 2 times green.
    """

    logits: jax.Array
    num_bits: int = struct.field(pytree_node=False, default=8)

    @property
    def num_mixtures(self) -> int:
        """M, the number of components."""
        return self.logits.shape[-1] // 10

    def _components(self):
        """Mixture logits (B, H, W, M); means, log-scales and coefficients (B, H, W, 3, M)."""
        m = self.num_mixtures
        slots = self.logits[..., m:].reshape(*self.logits.shape[:-1], 3, 3 * m)
        means, log_scales, coefficients = jnp.split(slots, 3, axis=-1)
        log_scales = jnp.maximum(log_scales, _min_log_scale(self.num_bits))
        return self.logits[..., :m], means, log_scales, jnp.tanh(coefficients)

    def log_prob_pixels(self, x: jax.Array) -> jax.Array:
        """Log probability of each RGB pixel of `x` (B, H, W, 3) in [0, 1], in nats, (B, H, W)."""
        mixture_logits, means, log_scales, coefficients = self._components()
        x = (2.0 * x - 1.0)[..., None]  # (B, H, W, 3, 1): broadcasts over components
        means = _condition_means(means, coefficients, x[..., 0, :], x[..., 1, :])
        per_colour = _discretized_log_prob(
            x, means, log_scales, self.num_bits, highest=PUBLISHED_HIGHEST
        )
        per_component = per_colour.sum(-2) + jax.nn.log_softmax(mixture_logits)
        return jax.nn.logsumexp(per_component, axis=-1)

    def sample(self, key: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
        """Draws images (B, H, W, 3) in [0, 1]; `temperature` divides the mixture logits and
        multiplies the scales."""
        mixture_logits, means, log_scales, coefficients = self._components()
        component_key, noise_key = jax.random.split(key)
        one_hot = _draw_component(component_key, mixture_logits / temperature)[..., None, :]
        means, log_scales, coefficients = (
            (one_hot * a).sum(-1) for a in (means, log_scales, coefficients)
        )
        noise = jax.random.logistic(noise_key, means.shape)
        return _colour_recursion(means + temperature * jnp.exp(log_scales) * noise, coefficients)

    def mean(self) -> jax.Array:
        """The images of the mixtures' averaged means and coefficients, (B, H, W, 3) in [0, 1]."""
        mixture_logits, means, _, coefficients = self._components()
        weights = jax.nn.softmax(mixture_logits)[..., None, :]
        return _colour_recursion((weights * means).sum(-1), (weights * coefficients).sum(-1))

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each value, each (B, H, W, 3), scaled to images in [0, 1].

        They are those of the continuous mixture of logistics, in which each colour depends on the
        previous ones, without clipping and rounding.
        """
        mixture_logits, means, log_scales, coefficients = self._components()
        red, green, blue = (means[..., i, :] for i in range(3))
        to_green, red_to_blue, green_to_blue = (coefficients[..., i, :] for i in range(3))
        noise = _logistic_variance(log_scales)
        green = green + to_green * red
        blue = blue + red_to_blue * red + green_to_blue * green
        variances = [
            noise[..., 0, :],
            noise[..., 1, :] + to_green**2 * noise[..., 0, :],
            noise[..., 2, :]
            + green_to_blue**2 * noise[..., 1, :]
            + (red_to_blue + green_to_blue * to_green) ** 2 * noise[..., 0, :],
        ]
        weights = jax.nn.softmax(mixture_logits)[..., None, :]
        return _mixture_moments(
            weights, jnp.stack([red, green, blue], -2), jnp.stack(variances, -2)
        )


@struct.dataclass
class GreyLogisticMixture:
    """Grey pixels of `num_bits` bits from `logits` (B, H, W, 3M): M mixture logits, M means and
    M log-scales."""

    logits: jax.Array
    num_bits: int = struct.field(pytree_node=False, default=8)

    def _components(self):
        """Mixture logits, means and log-scales, (B, H, W, M) each."""
        mixture_logits, means, log_scales = jnp.split(self.logits, 3, axis=-1)
        return mixture_logits, means, jnp.maximum(log_scales, _min_log_scale(self.num_bits))

    def log_prob_pixels(self, x: jax.Array) -> jax.Array:
        """Log probability of each value of `x` (B, H, W, 1) in [0, 1], in nats, (B, H, W)."""
        mixture_logits, means, log_scales = self._components()
        # `x` broadcasts over components.
        per_component = _discretized_log_prob(2.0 * x - 1.0, means, log_scales, self.num_bits)
        return jax.nn.logsumexp(per_component + jax.nn.log_softmax(mixture_logits), axis=-1)

    def sample(self, key: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
        """Draws images (B, H, W, 1) in [0, 1]; `temperature` divides the mixture logits and
        multiplies the scales."""
        mixture_logits, means, log_scales = self._components()
        component_key, noise_key = jax.random.split(key)
        one_hot = _draw_component(component_key, mixture_logits / temperature)
        mean, log_scale = ((one_hot * a).sum(-1, keepdims=True) for a in (means, log_scales))
        noise = jax.random.logistic(noise_key, mean.shape)
        return _to_unit(mean + temperature * jnp.exp(log_scale) * noise)

    def mean(self) -> jax.Array:
        """The images of the mixtures' averaged means, (B, H, W, 1) in [0, 1]."""
        mixture_logits, means, _ = self._components()
        return _to_unit((jax.nn.softmax(mixture_logits) * means).sum(-1, keepdims=True))

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each value, each (B, H, W, 1), scaled to images in [0, 1], without
        clipping and rounding."""
        mixture_logits, means, log_scales = (a[..., None, :] for a in self._components())
        variances = _logistic_variance(log_scales)
        return _mixture_moments(jax.nn.softmax(mixture_logits), means, variances)


def _logistic_variance(log_scales):
    return (math.pi * jnp.exp(log_scales)) ** 2 / 3.0


def _mixture_moments(weights, means, variances):
    """Mean and variance, scaled to [0, 1], of mixtures over the last axis on [-1, 1]."""
    mean = (weights * means).sum(-1)
    between_components = (means - mean[..., None]) ** 2
    return (mean + 1.0) / 2.0, (weights * (variances + between_components)).sum(-1) / 4.0


def _draw_component(key, mixture_logits):
    """Draws a component of each pixel's mixture, as one-hot vectors (..., M)."""
    component = jax.random.categorical(key, mixture_logits)
    return jax.nn.one_hot(component, mixture_logits.shape[-1])


def _condition_means(means, coefficients, red, green):
    """Adds to each colour's mean (..., 3, M) its linear dependence on the previous colours."""
    green_mean = means[..., 1, :] + coefficients[..., 0, :] * red
    blue_mean = means[..., 2, :] + coefficients[..., 1, :] * red + coefficients[..., 2, :] * green
    return jnp.stack([means[..., 0, :], green_mean, blue_mean], axis=-2)


def _min_log_scale(num_bits):
    """The smallest log-scale, which for more than 8 bits is as many bins wide as for 8 bits."""
    return MIN_LOG_SCALE - math.log(2.0) * max(num_bits - 8, 0)


def _discretized_log_prob(x, means, log_scales, num_bits, highest=None):
    """Log probability of the bin around `x` in [-1, 1].

    The lowest and the highest bin extend to infinity. For up to 8 bits all values above `highest`
    belong to the highest bin.
    """
    half_bin = 1.0 / (2**num_bits - 1)
    centered = x - means
    inverse_scale = jnp.exp(-log_scales)
    upper = inverse_scale * (centered + half_bin)
    lower = inverse_scale * (centered - half_bin)
    below, above = upper - jax.nn.softplus(upper), -jax.nn.softplus(lower)
    if num_bits > 8:
        highest = 1.0 - half_bin
        # log(sigmoid(upper) - sigmoid(lower)) without a difference of nearly equal numbers.
        inner = below + above + jnp.log(-jnp.expm1(-2.0 * half_bin * inverse_scale))
    else:
        highest = 1.0 - half_bin if highest is None else highest
        inner = _published_inner(centered, upper, lower, log_scales, num_bits)
    return jnp.where(x < half_bin - 1.0, below, jnp.where(x > highest, above, inner))


def _published_inner(centered, upper, lower, log_scales, num_bits):
    """Log probability of an inner bin for up to 8 bits, computed as for published numbers.

    If the probability is too small for float32, it is the density at the bin's centre times its
    width.
    """
    mass = jax.nn.sigmoid(upper) - jax.nn.sigmoid(lower)
    middle = jnp.exp(-log_scales) * centered
    log_density = middle - log_scales - 2.0 * jax.nn.softplus(middle)
    return jnp.where(
        mass > MIN_BIN_MASS,
        jnp.log(jnp.maximum(mass, 1e-10)),
        log_density - jnp.log((2**num_bits - 1) / 2),
    )


def _colour_recursion(values, coefficients):
    """Computes the colours in order from (..., 3) values; each is clipped to [-1, 1] before the
    next one depends on it."""
    red = jnp.clip(values[..., 0], -1.0, 1.0)
    green = jnp.clip(values[..., 1] + coefficients[..., 0] * red, -1.0, 1.0)
    blue = values[..., 2] + coefficients[..., 1] * red + coefficients[..., 2] * green
    return _to_unit(jnp.stack([red, green, blue], axis=-1))


def _to_unit(x):
    """Maps [-1, 1] to [0, 1] and clips values outside."""
    return (jnp.clip(x, -1.0, 1.0) + 1.0) / 2.0
