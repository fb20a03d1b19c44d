"""Batch normalisation and swish, with gradients that keep only their input.

What JAX derives keeps the centred input, the sigmoid and more beside the input: memory that has to
be written, stacked by the scans over groups, and read again, for arithmetic that costs less.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

# What a remat policy calls the mean and the variance of a batch.
STATISTICS = "batch_statistics"


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    *,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    center: jax.Array | None = None,
    kernels: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`Ops.batch_norm`; by `kernels`, where given: a module with a `batch_norm` of arrays and its
    `gradients`, as `cpu.normalization`."""
    with_swish = activation is swish
    center = jnp.zeros_like(bias) if center is None else lax.stop_gradient(center)
    results: Any = _batch_norm(x, scale, bias, center, epsilon, with_swish, kernels)
    y, mean, var = results
    if activation and not with_swish:
        y = activation(y)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _batch_norm(x, scale, bias, center, epsilon, with_swish, kernels):
    options = dict(epsilon=epsilon, with_swish=with_swish)
    if kernels:
        y, mean, var = kernels.batch_norm(x, scale, bias, center, **options)
        return y, *checkpoint_name((mean, var), STATISTICS)
    mean, var = checkpoint_name(moments(x, center), STATISTICS)
    return normalize(x, scale, bias, mean, var, **options), mean, var


def _batch_norm_fwd(*arguments):
    results: Any = _batch_norm(*arguments)
    return results, (*arguments[:3], *results[1:])


def _batch_norm_bwd(epsilon, with_swish, kernels, residuals, cotangents):
    (x, scale, bias, mean, var), (g, *_) = residuals, cotangents
    function = partial(kernels.gradients if kernels else gradients, epsilon=epsilon)
    return *function(x, scale, bias, mean, var, g, with_swish=with_swish), None


_batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


def moments(x: jax.Array, center: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance (C,) of x (..., C), about `center` (C,)."""
    # Both sums need nothing but x: one pass over it, and over devices one exchange.
    axes, x = tuple(range(x.ndim - 1)), x.astype(jnp.float32) - _per_channel(center, x)
    offset, square = x.mean(axes), jnp.square(x).mean(axes)
    return center + offset, jnp.maximum(square - jnp.square(offset), 0.0)


def normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    *,
    epsilon: float,
    with_swish: bool,
) -> jax.Array:
    """x (..., C) by its mean and variance, scaled, shifted and, `with_swish`, activated."""
    y = affine(x.astype(jnp.float32), *coefficients(scale, bias, mean, var, epsilon))
    return (swish(y) if with_swish else y).astype(x.dtype)


def gradients(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    g: jax.Array,
    *,
    epsilon: float,
    with_swish: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of `normalize` for x, through its mean and variance too, scale and bias."""
    axes, count, inverse = tuple(range(x.ndim - 1)), x.size // x.shape[-1], lax.rsqrt(var + epsilon)
    g = g.astype(jnp.float32)
    centred = x.astype(jnp.float32) - _per_channel(mean, x)
    if with_swish:
        (g,) = _swish_bwd(centred * _per_channel(scale * inverse, x) + _per_channel(bias, x), g)
    bias_grad = g.sum(axes)
    scale_grad = (g * centred).sum(axes) * inverse
    slope = -inverse * scale_grad / count
    inner = g + centred * _per_channel(slope, x) - _per_channel(bias_grad / count, x)
    return (_per_channel(scale * inverse, x) * inner).astype(x.dtype), scale_grad, bias_grad


def coefficients(
    scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """Batch norm as gain · x + shift: the gain and the shift (C,), of vectors (C,)."""
    gain = scale * lax.rsqrt(var + epsilon)
    return gain, bias - mean * gain


def affine(x: jax.Array, gain: jax.Array, shift: jax.Array) -> jax.Array:
    """gain · x + shift for vectors (C,), in float32; dtype of x."""
    y = x.astype(jnp.float32) * _per_channel(gain, x) + _per_channel(shift, x)
    return y.astype(x.dtype)


@jax.custom_vjp
def swish(x: jax.Array) -> jax.Array:
    """x · sigmoid(x)."""
    return x * jax.nn.sigmoid(x)


def _swish_bwd(x, g):
    # Written another way than above, or the compiler would see that the two gates are one, and
    # keep it from there to here.
    gate = 0.5 * jnp.tanh(0.5 * x) + 0.5
    return (g * (gate * (1 + x * (1 - gate))),)


swish.defvjp(lambda x: (swish(x), x), _swish_bwd)


def _per_channel(vector, like):
    """(C,) with as many axes as `like`."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)
