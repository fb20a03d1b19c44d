"""Batch norm with and without swish, and its gradient: two passes over memory each."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from nvae_jax.ops.gpu import columns


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.jit, static_argnames=("epsilon", "with_swish", "interpret"))
def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    center: jax.Array,
    *,
    epsilon: float,
    with_swish: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x (..., C) normalised, its mean and its biased variance (C,)."""
    rows = x.reshape(-1, x.shape[-1])
    sums = columns.column_sums(_deviations, [rows], [center], interpret=interpret)
    normalize = partial(_normalize, count=rows.shape[0], epsilon=epsilon, with_swish=with_swish)
    y, mean, var = columns.map_rows(
        normalize, [rows], [scale, bias, center, sums], results=2, interpret=interpret
    )
    return y.reshape(x.shape), mean, var


@partial(jax.jit, static_argnames=("epsilon", "with_swish", "interpret"))
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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients for x (..., C), scale and bias (C,), given `g`, that of the first result."""
    arrays = [a.reshape(-1, x.shape[-1]) for a in (x, g)]
    vectors, options = [scale, bias, mean, var], dict(epsilon=epsilon, with_swish=with_swish)
    sums = columns.column_sums(partial(_inner, **options), arrays, vectors, interpret=interpret)
    combine = partial(_combine, count=arrays[0].shape[0], **options)
    dx, dscale, dbias = columns.map_rows(
        combine, arrays, [*vectors, sums], results=2, interpret=interpret
    )
    return dx.reshape(x.shape), dscale, dbias


def _deviations(tiles, vectors):
    (x,), (center,) = tiles, vectors
    return x - center, jnp.square(x - center)


def _normalize(tiles, vectors, *, count, epsilon, with_swish):
    (x,), (scale, bias, center, total, square) = tiles, vectors
    offset = total / count
    var = jnp.maximum(square / count - offset * offset, 0.0)
    mean, gain = center + offset, scale * lax.rsqrt(var + epsilon)
    y = x * gain + (bias - mean * gain)
    return (y / (1.0 + jnp.exp(-y)) if with_swish else y), mean, var


def _inner(tiles, vectors, *, epsilon, with_swish):
    """The gradient of what is normalised and scaled, and that times the deviation."""
    (x, g), (scale, bias, mean, var) = tiles, vectors
    if with_swish:
        gain = scale * lax.rsqrt(var + epsilon)
        y = x * gain + (bias - mean * gain)
        gate = 1.0 / (1.0 + jnp.exp(-y))
        g = g * (gate * (1.0 + y * (1.0 - gate)))
    return g, g * (x - mean)


def _combine(tiles, vectors, *, count, epsilon, with_swish):
    *vectors, bias_grad, along = vectors
    scale, _, mean, var = vectors
    inner, _ = _inner(tiles, vectors, epsilon=epsilon, with_swish=with_swish)
    inverse = lax.rsqrt(var + epsilon)
    gain, slope = scale * inverse, inverse * inverse * along / count
    # Few vectors meet the tile: each has to be brought to the threads that hold it.
    dx = gain * inner - gain * slope * tiles[0] + gain * (mean * slope - bias_grad / count)
    return dx, along * inverse, bias_grad
