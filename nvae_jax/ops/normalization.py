"""Batch normalisation and swish, with gradients that keep only their input.

What JAX derives keeps the centred input, the sigmoid and more beside the input: memory that has to
be written, stacked by the scans over groups, and read again, for arithmetic that costs less.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from nvae_jax.ops import native

# What a remat policy calls the mean and the variance of a batch.
STATISTICS = "batch_statistics"


def batch_norm(x, scale, bias, epsilon, implementation=None):
    """Normalises over all but the last axis, with statistics in float32.

    Under `jit` with a sharded batch the statistics are those of the global batch.

    Args:
      x: (..., C), float32 or bfloat16.
      scale, bias: (C,), float32.
      epsilon: added to the variance.
      implementation: "native" for `nvae_jax.ops.native` where that can be used: on CPU, float32.
        Otherwise, and for all other names, XLA's.

    Returns:
      (..., C), dtype of x; the mean (C,) and the biased variance (C,), through which no gradient
      passes.

    Raises:
      RuntimeError: "native" is asked for where it cannot be had.
    """
    by_native = implementation == "native" and x.dtype == jnp.float32
    y, mean, var = _batch_norm(x, scale, bias, epsilon, by_native)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def _normalize(x, scale, bias, epsilon, by_native):
    choose = partial(lax.platform_dependent, cpu=_native_moments) if by_native else _here
    mean, var = checkpoint_name(choose(x, default=_moments), STATISTICS)
    return affine(x, scale * lax.rsqrt(var + epsilon), mean, bias), mean, var


_batch_norm = jax.custom_vjp(_normalize, nondiff_argnums=(3, 4))


def _here(*args, default):
    return default(*args)


def _moments(x):
    axes, x32 = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
    mean = x32.mean(axes)
    return mean, jnp.square(x32 - _spread(mean, x)).mean(axes)


def _native_moments(x):
    channels = x.shape[-1:]
    return tuple(native.call("moments", [channels, channels], x.reshape(-1, *channels)))


def affine(x, gain, mean, bias):
    """(x - mean) · gain + bias for vectors (C,), in float32; dtype of x."""
    y = x.astype(jnp.float32) * _spread(gain, x) + _spread(bias - mean * gain, x)
    return y.astype(x.dtype)


def _batch_norm_fwd(x, scale, bias, epsilon, by_native):
    y, mean, var = _normalize(x, scale, bias, epsilon, by_native)
    return (y, mean, var), (x, scale, mean, lax.rsqrt(var + epsilon))


def _batch_norm_bwd(epsilon, by_native, residuals, cotangents):
    del epsilon
    choose = partial(lax.platform_dependent, cpu=_native_gradients) if by_native else _here
    return choose(*residuals, cotangents[0], default=_gradients)


def _gradients(x, scale, mean, inverse, g):
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    g = g.astype(jnp.float32)
    centred = x.astype(jnp.float32) - _spread(mean, x)
    bias_grad = g.sum(axes)
    scale_grad = (g * centred).sum(axes) * inverse
    slope = -inverse * scale_grad / count
    inner = g + centred * _spread(slope, x) - _spread(bias_grad / count, x)
    return (_spread(scale * inverse, x) * inner).astype(x.dtype), scale_grad, bias_grad


def _native_gradients(x, scale, mean, inverse, g):
    rows, channels = (x.size // x.shape[-1], x.shape[-1]), x.shape[-1:]
    results = [rows, channels, channels]
    arrays = (x.reshape(rows), g.reshape(rows), scale, mean, inverse)
    dx, dscale, dbias = native.call("norm_grad", results, *arrays)
    return dx.reshape(x.shape), dscale, dbias


_batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


@jax.custom_vjp
def swish(x):
    """x · sigmoid(x)."""
    return x * jax.nn.sigmoid(x)


def _swish_bwd(x, g):
    # Written another way than above, or the compiler would see that the two gates are one, and
    # keep it from there to here.
    gate = 0.5 * jnp.tanh(0.5 * x) + 0.5
    return (g * (gate * (1 + x * (1 - gate))),)


swish.defvjp(lambda x: (swish(x), x), _swish_bwd)


def _spread(vector, like):
    """(C,) with as many axes as `like`."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)
