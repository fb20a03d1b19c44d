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
from nvae_jax.ops.by_platform import by_platform

# What a remat policy calls the mean and the variance of a batch.
STATISTICS = "batch_statistics"


def batch_norm(x, scale, bias, epsilon, implementation=None, activation=None):
    """Normalises over all but the last axis, with statistics in float32.

    Under `jit` with a sharded batch the statistics are those of the global batch.

    Args:
      x: (..., C), float32 or bfloat16.
      scale, bias: (C,), float32.
      epsilon: added to the variance.
      implementation: "native" for `nvae_jax.ops.native` where x is float32. Otherwise, and for all
        other names, XLA's.
      activation: applied to what is normalised; None: nothing.

    Returns:
      (..., C), dtype of x; the mean (C,) and the biased variance (C,), through which no gradient
      passes.

    Raises:
      RuntimeError: "native" is asked for where it cannot be had.
    """
    by_native = implementation == "native" and x.dtype == jnp.float32
    fused = by_native and activation is swish
    y, mean, var = _batch_norm(x, scale, bias, epsilon, by_native, fused)
    if activation and not fused:
        y = activation(y)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_norm(x, scale, bias, epsilon, by_native, with_swish):
    mean, var = (_chosen_moments if by_native else _moments)(x)
    mean, var = checkpoint_name((mean, var), STATISTICS)
    normalize = _chosen_norm_swish if with_swish else _norm
    return normalize(x, scale, bias, mean, var, epsilon), mean, var


def _moments(x):
    axes, x32 = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
    mean = x32.mean(axes)
    return mean, jnp.square(x32 - _spread(mean, x)).mean(axes)


def _native_moments(x):
    channels = x.shape[-1:]
    return tuple(native.call("moments", [channels, channels], x.reshape(-1, *channels)))


# jit, so that layers of equal shapes are traced and lowered once.
@jax.jit
def _chosen_moments(x):
    return by_platform(x, cpu=_native_moments, default=_moments)


def _norm(x, scale, bias, mean, var, epsilon):
    return affine(x, *coefficients(scale, bias, mean, var, epsilon))


def _norm_swish(*arrays, epsilon):
    return swish(_norm(*arrays, epsilon))


def _native_norm_swish(x, *vectors, epsilon):
    rows = x.reshape(-1, x.shape[-1])
    return native.call("norm_swish", rows.shape, rows, *vectors, epsilon=epsilon).reshape(x.shape)


@partial(jax.jit, static_argnums=5)
def _chosen_norm_swish(x, scale, bias, mean, var, epsilon):
    return by_platform(
        x,
        scale,
        bias,
        mean,
        var,
        cpu=partial(_native_norm_swish, epsilon=float(epsilon)),
        default=partial(_norm_swish, epsilon=epsilon),
    )


def coefficients(scale, bias, mean, var, epsilon):
    """Batch norm as gain · x + shift: the gain and the shift (C,), of vectors (C,)."""
    gain = scale * lax.rsqrt(var + epsilon)
    return gain, bias - mean * gain


def affine(x, gain, shift):
    """gain · x + shift for vectors (C,), in float32; dtype of x."""
    y = x.astype(jnp.float32) * _spread(gain, x) + _spread(shift, x)
    return y.astype(x.dtype)


def _batch_norm_fwd(x, scale, bias, *options):
    y, mean, var = _batch_norm(x, scale, bias, *options)
    return (y, mean, var), (x, scale, bias, mean, var)


def _batch_norm_bwd(epsilon, by_native, with_swish, residuals, cotangents):
    if not by_native:
        return _gradients(*residuals, cotangents[0], epsilon=epsilon)
    return _chosen_gradients(*residuals, cotangents[0], epsilon, with_swish)


@partial(jax.jit, static_argnums=(6, 7))
def _chosen_gradients(x, scale, bias, mean, var, g, epsilon, with_swish):
    kernel = "norm_swish_grad" if with_swish else "norm_grad"
    return by_platform(
        x,
        scale,
        bias,
        mean,
        var,
        g,
        cpu=partial(_native_gradients, kernel=kernel, epsilon=float(epsilon)),
        default=partial(_swish_gradients if with_swish else _gradients, epsilon=epsilon),
    )


def _native_gradients(x, *vectors, kernel, epsilon):
    *vectors, g = vectors
    rows, channels = (x.size // x.shape[-1], x.shape[-1]), x.shape[-1:]
    results, arrays = [rows, channels, channels], (x.reshape(rows), g.reshape(rows), *vectors)
    dx, dscale, dbias = native.call(kernel, results, *arrays, epsilon=epsilon)
    return dx.reshape(x.shape), dscale, dbias


def _swish_gradients(*arrays, epsilon):
    *given, g = arrays
    return _gradients(*given, *_swish_bwd(_norm(*given, epsilon), g), epsilon=epsilon)


def _gradients(x, scale, _, mean, var, g, *, epsilon):
    axes, count, inverse = tuple(range(x.ndim - 1)), x.size // x.shape[-1], lax.rsqrt(var + epsilon)
    g = g.astype(jnp.float32)
    centred = x.astype(jnp.float32) - _spread(mean, x)
    bias_grad = g.sum(axes)
    scale_grad = (g * centred).sum(axes) * inverse
    slope = -inverse * scale_grad / count
    inner = g + centred * _spread(slope, x) - _spread(bias_grad / count, x)
    return (_spread(scale * inverse, x) * inner).astype(x.dtype), scale_grad, bias_grad


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
