"""The gate of squeeze and excitation (Hu et al. 2018)."""

import jax
import jax.numpy as jnp

from nvae_jax.ops import native
from nvae_jax.ops.by_platform import by_platform


def gate(means, reduce, expand, implementation=None):
    """sigmoid(relu(means · K + b) · K' + b').

    Args:
      means: of the channels, (B, C).
      reduce: (K (C, R), b (R,)), dtype of `means`.
      expand: (K' (R, C), b' (C,)), dtype of `means`.
      implementation: "native" for `nvae_jax.ops.native` where `means` are float32; otherwise, and
        for all other names, XLA's.

    Returns:
      (B, C).
    """
    if implementation == "native" and means.dtype == jnp.float32:
        return _chosen(means, *reduce, *expand)
    return _gate(means, *reduce, *expand)[1]


def _gate(means, reduce, reduce_bias, expand, expand_bias):
    hidden = jax.nn.relu(means @ reduce + reduce_bias[None])
    return hidden, jax.nn.sigmoid(hidden @ expand + expand_bias[None])


def _native(means, reduce, reduce_bias, expand, expand_bias):
    shapes = [(means.shape[0], reduce.shape[1]), means.shape]
    return tuple(native.call("gate", shapes, means, reduce, reduce_bias, expand, expand_bias))


@jax.custom_vjp
def _chosen(*arrays):
    return _chosen_fwd(*arrays)[0]


# jit, so that layers of equal shapes are traced and lowered once.
@jax.jit
def _chosen_fwd(*arrays):
    hidden, y = by_platform(*arrays, cpu=_native, default=_gate)
    means, reduce, _, expand, _ = arrays
    return y, (means, reduce, expand, hidden, y)


@jax.jit
def _chosen_bwd(residuals, g):
    return by_platform(*residuals, g, cpu=_native_gradients, default=_gradients)


_chosen.defvjp(_chosen_fwd, _chosen_bwd)


def _native_gradients(means, reduce, expand, hidden, y, g):
    shapes = [means.shape, reduce.shape, reduce.shape[1:], expand.shape, expand.shape[1:]]
    return tuple(native.call("gate_grad", shapes, means, reduce, expand, hidden, y, g))


def _gradients(means, reduce, expand, hidden, y, g):
    g = g * y * (1 - y)
    inner = jnp.where(hidden > 0, g @ expand.T, 0)
    return inner @ reduce.T, means.T @ inner, inner.sum(0), hidden.T @ g, g.sum(0)
