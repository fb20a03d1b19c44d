"""Batch norm with and without swish, and its gradient, with the C++ kernels in float32."""

from functools import partial

import jax
from jax.ad_checkpoint import checkpoint_name

from nvae_jax.ops.cpu import native
from nvae_jax.ops.portable.normalization import STATISTICS, normalize


def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    _: jax.Array,
    *,
    epsilon: float,
    with_swish: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x (..., C); returns it with its mean (C,) and biased variance (C,)."""
    mean, var = checkpoint_name(_moments(x), STATISTICS)
    if with_swish:
        return _normalize_swish(x, scale, bias, mean, var, epsilon=epsilon), mean, var
    return normalize(x, scale, bias, mean, var, epsilon=epsilon, with_swish=False), mean, var


# With jit, layers of equal shapes are traced and lowered only once.
@jax.jit
def _moments(x):
    rows, channels = x.reshape(-1, x.shape[-1]), x.shape[-1:]
    return native.call("moments", [channels, channels], rows)


@partial(jax.jit, static_argnames="epsilon")
def _normalize_swish(x, *vectors, epsilon):
    rows = x.reshape(-1, x.shape[-1])
    y = native.call("norm_swish", rows.shape, rows, *vectors, epsilon=float(epsilon))
    return y.reshape(x.shape)


@partial(jax.jit, static_argnames=("epsilon", "with_swish"))
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
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of `batch_norm` with respect to x, scale and bias."""
    kernel = "norm_swish_grad" if with_swish else "norm_grad"
    rows, channels = (x.size // x.shape[-1], x.shape[-1]), x.shape[-1:]
    arrays = x.reshape(rows), g.reshape(rows), scale, bias, mean, var
    results = [rows, channels, channels]
    dx, dscale, dbias = native.call(kernel, results, *arrays, epsilon=float(epsilon))
    return dx.reshape(x.shape), dscale, dbias
