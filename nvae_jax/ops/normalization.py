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
from nvae_jax.ops.gpu import normalization as gpu

# What a remat policy calls the mean and the variance of a batch.
STATISTICS = "batch_statistics"


def batch_norm(x, scale, bias, epsilon, implementation=None, activation=None, center=None):
    """Normalises over all but the last axis, with statistics in float32.

    Under `jit` with a sharded batch the statistics are those of the global batch.

    Args:
      x: (..., C), float32 or bfloat16.
      scale, bias: (C,), float32.
      epsilon: added to the variance.
      implementation: "native" for `nvae_jax.ops.native` where x is float32, "pallas" for
        `nvae_jax.ops.gpu`. Otherwise, and for all other names, XLA's.
      activation: applied to what is normalised; None: nothing.
      center: (C,), about where the mean is, such as a running mean: mean and variance are sums of
        one pass over x - center, of which nothing cancels then. None: 0.

    Returns:
      (..., C), dtype of x; the mean (C,) and the biased variance (C,), through which no gradient
      passes.

    Raises:
      RuntimeError: "native" is asked for where it cannot be had.
    """
    with_swish = activation is swish
    if implementation == "native" and x.dtype != jnp.float32:
        implementation = None
    center = jnp.zeros_like(bias) if center is None else lax.stop_gradient(center)
    y, mean, var = _batch_norm(x, scale, bias, center, epsilon, implementation, with_swish)
    if activation and not with_swish:
        y = activation(y)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _batch_norm(x, scale, bias, center, epsilon, implementation, with_swish):
    if implementation == "pallas":
        y, mean, var = _by_pallas(x, scale, bias, center, epsilon, with_swish)
        return y, *checkpoint_name((mean, var), STATISTICS)
    native = implementation == "native"
    mean, var = (_chosen_moments if native else _moments)(x, center)
    mean, var = checkpoint_name((mean, var), STATISTICS)
    if native and with_swish:
        return _chosen_norm_swish(x, scale, bias, mean, var, epsilon), mean, var
    return _normalize(x, scale, bias, mean, var, epsilon, with_swish), mean, var


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.jit, static_argnums=(4, 5))
def _by_pallas(x, scale, bias, center, epsilon, with_swish):
    options = dict(epsilon=epsilon, with_swish=with_swish)
    by_kernels = partial(gpu.batch_norm, **options)
    return by_platform(
        x, scale, bias, center, cuda=by_kernels, default=partial(_portable, **options)
    )


def _portable(x, scale, bias, center, *, epsilon, with_swish):
    mean, var = _moments(x, center)
    return _normalize(x, scale, bias, mean, var, epsilon, with_swish), mean, var


def _moments(x, center):
    # Both sums need nothing but x: one pass over it, and over devices one exchange.
    axes, x = tuple(range(x.ndim - 1)), x.astype(jnp.float32) - _spread(center, x)
    offset, square = x.mean(axes), jnp.square(x).mean(axes)
    return center + offset, jnp.maximum(square - jnp.square(offset), 0.0)


def _native_moments(x, _):
    channels = x.shape[-1:]
    return tuple(native.call("moments", [channels, channels], x.reshape(-1, *channels)))


@jax.jit
def _chosen_moments(x, center):
    return by_platform(x, center, cpu=_native_moments, default=_moments)


def _normalize(x, scale, bias, mean, var, epsilon, with_swish):
    y = affine(x.astype(jnp.float32), *coefficients(scale, bias, mean, var, epsilon))
    return (swish(y) if with_swish else y).astype(x.dtype)


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
        default=partial(_normalize, epsilon=epsilon, with_swish=True),
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


def _batch_norm_bwd(epsilon, implementation, with_swish, residuals, cotangents):
    arrays, options = (*residuals, cotangents[0]), dict(epsilon=epsilon, with_swish=with_swish)
    if implementation:
        return *_chosen_gradients(*arrays, **options, kernels=implementation), None
    return *_gradients(*arrays, **options), None


@partial(jax.jit, static_argnames=("epsilon", "with_swish", "kernels"))
def _chosen_gradients(*arrays, epsilon, with_swish, kernels):
    options = dict(epsilon=float(epsilon), with_swish=with_swish)
    default = partial(_gradients, **options)
    if kernels == "pallas":
        return by_platform(*arrays, cuda=partial(gpu.gradients, **options), default=default)
    return by_platform(*arrays, cpu=partial(_native_gradients, **options), default=default)


def _native_gradients(x, *vectors, epsilon, with_swish):
    kernel = "norm_swish_grad" if with_swish else "norm_grad"
    *vectors, g = vectors
    rows, channels = (x.size // x.shape[-1], x.shape[-1]), x.shape[-1:]
    results, arrays = [rows, channels, channels], (x.reshape(rows), g.reshape(rows), *vectors)
    dx, dscale, dbias = native.call(kernel, results, *arrays, epsilon=epsilon)
    return dx.reshape(x.shape), dscale, dbias


def _gradients(x, scale, bias, mean, var, g, *, epsilon, with_swish):
    axes, count, inverse = tuple(range(x.ndim - 1)), x.size // x.shape[-1], lax.rsqrt(var + epsilon)
    g = g.astype(jnp.float32)
    centred = x.astype(jnp.float32) - _spread(mean, x)
    if with_swish:
        (g,) = _swish_bwd(centred * _spread(scale * inverse, x) + _spread(bias, x), g)
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
