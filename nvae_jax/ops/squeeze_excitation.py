"""The gate of squeeze and excitation (Hu et al. 2018)."""

from functools import partial

import jax
import jax.numpy as jnp

from nvae_jax.ops import native
from nvae_jax.ops.by_platform import by_platform
from nvae_jax.ops.gpu import squeeze_excitation as gpu


def add_gated(skip, x, reduce, expand, scale, precision=None, implementation=None):
    """skip + scale · x · gate(means of x over H and W).

    Args:
      skip, x: (B, H, W, C).
      reduce, expand: as in `gate`, in float32.
      scale: a number.
      precision: as in `gate`.
      implementation: "pallas" for `nvae_jax.ops.gpu` where it suits x; otherwise as in `gate`.

    Returns:
      (B, H, W, C), dtype of x.
    """
    arrays = (skip, x, *reduce, *expand)
    if implementation == "pallas" and gpu.suits(x):
        return _at_once(scale, precision, *arrays)
    return _one_by_one(*arrays, scale=scale, precision=precision, implementation=implementation)


def _one_by_one(skip, x, *weights, scale, precision=None, implementation=None):
    reduce, bias, expand, expand_bias = (weight.astype(x.dtype) for weight in weights)
    means = x.mean((1, 2)).astype(x.dtype)
    gates = gate(means, (reduce, bias), (expand, expand_bias), implementation, precision)
    return skip + scale * (x * gates[:, None, None, :])


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _at_once(scale, precision, *arrays):
    portable = partial(_one_by_one, scale=scale, precision=precision)
    return by_platform(*arrays, cuda=partial(gpu.add_gated, scale=scale), default=portable)


@partial(jax.jit, static_argnums=(0, 1))
def _at_once_bwd(scale, precision, arrays, g):
    def derived(skip, *arrays):
        *arrays, g = arrays
        function = partial(_one_by_one, skip, scale=scale, precision=precision)
        return jax.vjp(function, *arrays)[1](g)

    def by_kernels(_, *arrays):
        return gpu.gradients(*arrays, scale=scale)

    return g, *by_platform(*arrays, g, cuda=by_kernels, default=derived)


_at_once.defvjp(
    lambda scale, precision, *arrays: (_at_once(scale, precision, *arrays), arrays), _at_once_bwd
)


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
