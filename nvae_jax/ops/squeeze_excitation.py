"""The gate of squeeze and excitation (Hu et al. 2018)."""

import jax
import jax.numpy as jnp

from nvae_jax.ops import native


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
        return _native(means, *reduce, *expand)
    hidden = jax.nn.relu(means @ reduce[0] + reduce[1][None])
    return jax.nn.sigmoid(hidden @ expand[0] + expand[1][None])


@jax.custom_vjp
def _native(means, reduce, reduce_bias, expand, expand_bias):
    return _native_fwd(means, reduce, reduce_bias, expand, expand_bias)[0]


def _native_fwd(means, reduce, reduce_bias, expand, expand_bias):
    shapes = [(means.shape[0], reduce.shape[1]), means.shape]
    hidden, y = native.call("gate", shapes, means, reduce, reduce_bias, expand, expand_bias)
    return y, (means, reduce, expand, hidden, y)


def _native_bwd(residuals, g):
    means, reduce, expand, _, _ = residuals
    shapes = [means.shape, reduce.shape, reduce.shape[1:], expand.shape, expand.shape[1:]]
    return tuple(native.call("gate_grad", shapes, *residuals, g))


_native.defvjp(_native_fwd, _native_bwd)
