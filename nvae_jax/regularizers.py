"""Regularisers: the spectral norm of every convolution, and the largest batch-norm scales (paper,
section 3.2).

Power iteration is one of the operations with an implementation per platform:
`Ops.spectral_penalty`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax.ops.portable.spectral import matrix_shape, shape_name, sorted_leaves

ROUNDS = 4  # of power iteration in each training step
EARLY_ROUNDS = 36  # before the first step, starting from random vectors


def init_spectral_vectors(key: jax.Array, kernels: Any) -> dict[str, jax.Array]:
    """Draws random unit vectors to start power iteration from.

    Args:
      key: a PRNG key.
      kernels: `effective_kernels` of a model, or their shapes.

    Returns:
      {name of a matrix shape: (matrices, out)}.
    """
    shapes = {}
    for path, kernel in sorted_leaves(kernels):
        stack, rows, columns = matrix_shape(path, kernel)
        name = shape_name(stack, rows, columns)
        shapes[name] = (shapes.get(name, (0,))[0] + stack, columns)
    names = sorted(shapes)
    sizes = [math.prod(shapes[name]) for name in names]
    lengths = np.concatenate([np.full(*shapes[name]) for name in names])
    # All vectors share one draw and one division by the norms, because each takes long to compile.
    flat = _unit_segments(jax.random.normal(key, (sum(sizes),)), lengths)
    parts = jnp.split(flat, np.cumsum(sizes)[:-1])
    return {n: part.reshape(shapes[n]) for n, part in zip(names, parts, strict=True)}


def _unit_segments(x, lengths):
    """Normalises the vectors of the given lengths that `x` (sum of lengths,) concatenates."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    squares = jax.ops.segment_sum(x**2, owner, len(lengths), indices_are_sorted=True)
    return x / (jnp.sqrt(squares) + 1e-12)[owner]


def batch_norm_penalty(params: Any) -> jax.Array:
    """The sum over all batch norms of their largest |scale|, (), (paper, section 3.2)."""
    by_width = {}  # layers of the same width share one maximum operation
    for path, scale in sorted_leaves(params):
        if path[-1] == "scale":
            width = scale.shape[-1]
            by_width.setdefault(width, []).append(scale.reshape(-1, width))
    if not by_width:
        return jnp.zeros(())
    largest = (jnp.abs(jnp.concatenate(scales)).max(1).sum() for scales in by_width.values())
    return jnp.asarray(sum(largest))
