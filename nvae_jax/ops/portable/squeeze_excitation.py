"""Squeeze and excitation (Hu et al. 2018) in a residual sum."""

from functools import partial

import jax
import jax.numpy as jnp


def add_gated(skip, x, reduce, expand, scale, precision=None):
    """`Ops.add_gated`."""
    reduce, reduce_bias, expand, expand_bias = (w.astype(x.dtype) for w in (*reduce, *expand))
    dot = partial(jnp.dot, precision=precision)
    means = x.mean((1, 2)).astype(x.dtype)
    hidden = jax.nn.relu(dot(means, reduce) + reduce_bias[None])
    gates = jax.nn.sigmoid(dot(hidden, expand) + expand_bias[None])
    return skip + scale * (x * gates[:, None, None, :])
