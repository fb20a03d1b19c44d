"""Batch norm with and without swish, and its gradient: two passes over memory each.

The first pass of either makes sums, and the second uses them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from nvae_jax.ops.gpu import columns
from nvae_jax.ops.portable.normalization import STATISTICS

Vectors = Sequence[jax.Array]


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
    """Returns x (..., C) normalised, and its mean and biased variance (C,)."""
    options: dict[str, Any] = dict(epsilon=epsilon, with_swish=with_swish, interpret=interpret)
    sums = checkpoint_name(deviation_sums(x, center, interpret), STATISTICS)
    y, mean, var = normalize(x, (scale, bias, center), sums, **options)
    return y, mean, var


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
    """Returns the gradients for x (..., C), scale and bias (C,), given the gradient `g` for the
    normalised x."""
    norm = scale, bias, mean, var
    options: dict[str, Any] = dict(epsilon=epsilon, with_swish=with_swish, interpret=interpret)
    sums = gradient_sums(x, g, norm, **options)
    dx, scale_grad, bias_grad = apply_gradient(x, g, norm, sums, **options)
    return dx, scale_grad, bias_grad


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.jit, static_argnums=2)
def deviation_sums(x: jax.Array, center: jax.Array, interpret: bool) -> jax.Array:
    """Sums the deviations of x (..., C) from `center` (C,), and their squares, over the pixels.

    Returns the sums in parts, as `columns.column_sums` does."""
    return columns.column_sums(_deviations, [_rows(x)], [center], interpret=interpret)


@partial(jax.jit, static_argnames=("epsilon", "with_swish", "interpret"))
def normalize(
    x: jax.Array,
    norm: Vectors,
    sums: jax.Array,
    *,
    epsilon: float,
    with_swish: bool,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Normalises x (..., C) with scale, bias and center, given the result of `deviation_sums`.

    Returns the normalised x, and its mean and biased variance."""
    function = partial(_normalize, epsilon=epsilon, with_swish=with_swish)
    return _map(function, [x], [*norm, sums], interpret)


def gradient_sums(
    x: jax.Array,
    g: jax.Array,
    norm: Vectors,
    *,
    epsilon: float,
    with_swish: bool,
    interpret: bool,
) -> jax.Array:
    """Sums i and i · (x - mean) over the pixels, given scale, bias, mean and variance, where i is
    the gradient for the output of batch norm before the activation."""
    terms = partial(_inner, epsilon=epsilon, with_swish=with_swish)
    return columns.column_sums(terms, [_rows(x), _rows(g)], norm, interpret=interpret)


def apply_gradient(
    x: jax.Array,
    g: jax.Array,
    norm: Vectors,
    sums: jax.Array,
    *,
    epsilon: float,
    with_swish: bool,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Returns the gradients for x, scale and bias, given the result of `gradient_sums`."""
    function = partial(_combine, epsilon=epsilon, with_swish=with_swish)
    return _map(function, [x, g], [*norm, sums], interpret)


def _map(function, images, vectors, interpret):
    """Applies a function with two vectors as results; the images are (..., C)."""
    shape, rows = images[0].shape, [_rows(array) for array in images]
    function = partial(function, count=len(rows[0]))
    mapped, *found = columns.map_rows(function, rows, vectors, results=2, interpret=interpret)
    return mapped.reshape(shape), *found


def _rows(array):
    return array.reshape(-1, array.shape[-1])


def _deviations(tiles, vectors):
    (x,), (center,) = tiles, vectors
    return x - center, jnp.square(x - center)


def moments(sums: Vectors, center: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance, given the sums of the deviations of `count` values from
    `center`, and of their squares."""
    offset, square = sums[0] / count, sums[1] / count
    return center + offset, jnp.maximum(square - offset * offset, 0.0)


def gain_and_shift(
    scale: jax.Array, bias: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the vectors with which batch norm is gain · x + shift."""
    gain = scale * lax.rsqrt(var + epsilon)
    return gain, bias - mean * gain


def swish(y: jax.Array) -> jax.Array:
    return y * _sigmoid(y)


def swish_slope(y: jax.Array) -> jax.Array:
    """The derivative of `swish`."""
    gate = _sigmoid(y)
    return gate * (1.0 + y * (1.0 - gate))


def _sigmoid(y):
    return 1.0 / (1.0 + jnp.exp(-y))


def input_gradient(
    norm: Vectors, sums: Vectors, count: int, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the vectors (a, b, c) with which the gradient for x is a · i + b · x + c, where i is
    the gradient for the output of batch norm before the activation.

    Args:
      norm: scale, bias, mean and variance.
      sums: the sums of i and of i · (x - mean).
      count: the number of values of each channel.
      epsilon: constant added to the variance.
    """
    (scale, _, mean, var), (total, along) = norm, sums
    inverse = lax.rsqrt(var + epsilon)
    gain, slope = scale * inverse, inverse * inverse * along / count
    return gain, -gain * slope, gain * (mean * slope - total / count)


def _normalize(tiles, vectors, *, count, epsilon, with_swish):
    (x,), (scale, bias, center, *sums) = tiles, vectors
    mean, var = moments(sums, center, count)
    # Few vectors meet the tile: each has to be brought to the threads that hold it.
    gain, shift = gain_and_shift(scale, bias, mean, var, epsilon)
    y = x * gain + shift
    return (swish(y) if with_swish else y), mean, var


def _inner(tiles, vectors, *, epsilon, with_swish):
    """Returns i and i · (x - mean), where i is the gradient before the activation."""
    (x, g), (scale, bias, mean, var) = tiles, vectors
    if with_swish:
        gain, shift = gain_and_shift(scale, bias, mean, var, epsilon)
        g = g * swish_slope(x * gain + shift)
    return g, g * (x - mean)


def _combine(tiles, vectors, *, count, epsilon, with_swish):
    norm, sums = vectors[:4], vectors[4:]
    inner, _ = _inner(tiles, norm, epsilon=epsilon, with_swish=with_swish)
    by_inner, by_x, constant = input_gradient(norm, sums, count, epsilon)
    dx = by_inner * inner + by_x * tiles[0] + constant
    return dx, sums[1] * lax.rsqrt(norm[3] + epsilon), sums[0]
