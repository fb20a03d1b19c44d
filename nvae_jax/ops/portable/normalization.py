"""Batch normalisation and swish, with gradients that store only their input.

The gradients derived by JAX also store the centred input, the sigmoid and more. Writing, stacking
(in scans over groups) and reading these arrays costs more than recomputing them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

# The name of a batch's mean and variance in remat policies.
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
    """`Ops.batch_norm`, computed by the functions `batch_norm` and `gradients` of the module
    `kernels`, such as `cpu.normalization`, if there is one."""
    with_swish = activation is swish
    center = jnp.zeros_like(bias) if center is None else lax.stop_gradient(center)
    results: Any = _batch_norm(x, scale, bias, center, epsilon, with_swish, kernels)
    y, mean, var = results
    if activation and not with_swish:
        y = activation(y)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _batch_norm(*arguments):
    return _normalize_batch(*arguments)


def _normalize_batch(x, scale, bias, center, epsilon, with_swish, kernels):
    options = dict(epsilon=epsilon, with_swish=with_swish)
    if kernels:
        y, mean, var = kernels.batch_norm(x, scale, bias, center, **options)
        return y, *checkpoint_name((mean, var), STATISTICS)
    mean, var = checkpoint_name(moments(x, center), STATISTICS)
    return normalize(x, scale, bias, mean, var, **options), mean, var


def _batch_norm_fwd(*arguments):
    # Not `_batch_norm`: remat does not look for names inside of functions with own gradients.
    y, mean, var = _normalize_batch(*arguments)
    return (y, mean, var), (*arguments[:3], mean, var)


def _batch_norm_bwd(epsilon, with_swish, kernels, residuals, cotangents):
    (x, scale, bias, mean, var), (g, *_) = residuals, cotangents
    function = partial(kernels.gradients if kernels else gradients, epsilon=epsilon)
    return *function(x, scale, bias, mean, var, g, with_swish=with_swish), None


_batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


def moments(x: jax.Array, center: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance (C,) of x (..., C), computed relative to `center` (C,)."""
    # Both sums need only one pass over x, and one communication between devices.
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
    """Normalises x (..., C) by mean and variance, scales and shifts it, and may apply swish."""
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
    """The gradients of batch norm for x (including those through mean and variance), scale and
    bias."""
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
    """The gain (C,) and shift (C,) with which batch norm is gain · x + shift."""
    gain = scale * lax.rsqrt(var + epsilon)
    return gain, bias - mean * gain


def affine(x: jax.Array, gain: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns gain · x + shift for vectors (C,), computed in float32, with the dtype of x."""
    y = x.astype(jnp.float32) * _per_channel(gain, x) + _per_channel(shift, x)
    return y.astype(x.dtype)


@jax.custom_vjp
def swish(x: jax.Array) -> jax.Array:
    """The activation x · sigmoid(x)."""
    return x * jax.nn.sigmoid(x)


def _swish_bwd(x, g):
    # The sigmoid is written differently from `swish`. Otherwise the compiler would see that both
    # are the same, and store it from the forward pass.
    gate = 0.5 * jnp.tanh(0.5 * x) + 0.5
    return (g * (gate * (1 + x * (1 - gate))),)


swish.defvjp(lambda x: (swish(x), x), _swish_bwd)


def _per_channel(vector, like):
    """Reshapes a vector (C,) to as many axes as `like`."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)
