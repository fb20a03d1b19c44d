"""Squeeze and excitation (Hu et al. 2018) in a residual sum."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike


def add_gated(
    skip: jax.Array,
    x: jax.Array,
    reduce: tuple[jax.Array, jax.Array],
    expand: tuple[jax.Array, jax.Array],
    scale: float,
    precision: PrecisionLike = None,
) -> jax.Array:
    """`Ops.add_gated`."""
    squeeze, squeeze_bias, excite, excite_bias = (w.astype(x.dtype) for w in (*reduce, *expand))
    dot = partial(jnp.dot, precision=precision)
    means = x.mean((1, 2)).astype(x.dtype)
    hidden = jax.nn.relu(dot(means, squeeze) + squeeze_bias[None])
    gates = jax.nn.sigmoid(dot(hidden, excite) + excite_bias[None])
    return skip + scale * (x * gates[:, None, None, :])
