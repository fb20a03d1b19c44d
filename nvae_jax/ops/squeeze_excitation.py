"""The gate of squeeze and excitation (Hu et al. 2018)."""

from functools import partial

import jax
import jax.numpy as jnp

from nvae_jax.ops import native
from nvae_jax.ops.by_platform import by_platform


def gate(means, reduce, expand, implementation=None, precision=None):
    """sigmoid(relu(means · K + b) · K' + b').

    Args:
      means: of the channels, (B, C).
      reduce: (K (C, R), b (R,)), dtype of `means`.
      expand: (K' (R, C), b' (C,)), dtype of `means`.
      implementation: "native" for `nvae_jax.ops.native` where `means` are float32; otherwise, and
        for all other names, XLA's.
      precision: as in `lax.dot`; the native kernels have float32's.

    Returns:
      (B, C).
    """
    if implementation == "native" and means.dtype == jnp.float32:
        return _chosen(precision, means, *reduce, *expand)
    return _gate(precision, means, *reduce, *expand)[1]


def _gate(precision, means, reduce, reduce_bias, expand, expand_bias):
    dot = partial(jnp.dot, precision=precision)
    hidden = jax.nn.relu(dot(means, reduce) + reduce_bias[None])
    return hidden, jax.nn.sigmoid(dot(hidden, expand) + expand_bias[None])


def _native(means, reduce, reduce_bias, expand, expand_bias):
    shapes = [(means.shape[0], reduce.shape[1]), means.shape]
    return tuple(native.call("gate", shapes, means, reduce, reduce_bias, expand, expand_bias))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chosen(*arguments):
    return _chosen_fwd(*arguments)[0]


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.jit, static_argnums=0)
def _chosen_fwd(precision, *arrays):
    hidden, y = by_platform(*arrays, cpu=_native, default=partial(_gate, precision))
    means, reduce, _, expand, _ = arrays
    return y, (means, reduce, expand, hidden, y)


@partial(jax.jit, static_argnums=0)
def _chosen_bwd(precision, residuals, g):
    derived = partial(_gradients, precision)
    return by_platform(*residuals, g, cpu=_native_gradients, default=derived)


_chosen.defvjp(_chosen_fwd, _chosen_bwd)


def _native_gradients(means, reduce, expand, hidden, y, g):
    shapes = [means.shape, reduce.shape, reduce.shape[1:], expand.shape, expand.shape[1:]]
    return tuple(native.call("gate_grad", shapes, means, reduce, expand, hidden, y, g))


def _gradients(precision, means, reduce, expand, hidden, y, g):
    dot = partial(jnp.dot, precision=precision)
    g = g * y * (1 - y)
    inner = jnp.where(hidden > 0, dot(g, expand.T), 0)
    return dot(inner, reduce.T), dot(means.T, inner), inner.sum(0), dot(hidden.T, g), g.sum(0)
