"""Spectral norm of every convolution, and the largest batch-norm scales (paper, section 3.2).

Matrices of one shape are iterated on together: one batched product a shape, not one a layer.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

ROUNDS = 4  # of power iteration, each step
FIRST_ROUNDS = 40  # at the first step


def init_spectral_vectors(key, kernels):
    """Random unit vectors to start power iteration from.

    Args:
      key: a PRNG key.
      kernels: `effective_kernels` of a model; shapes suffice.

    Returns:
      one (matrices, out) array for each shape of matrix, under the shape's name.
    """
    shapes = {}
    for path, kernel in _sorted_leaves(kernels):
        stack, rows, columns = _matrix_shape(path, kernel)
        name = f"{rows}x{columns}"
        shapes[name] = (shapes.get(name, (0,))[0] + stack, columns)
    names = sorted(shapes)
    sizes = [math.prod(shapes[name]) for name in names]
    flat = jax.random.normal(key, (sum(sizes),))  # one draw: each is a good deal to compile
    parts = jnp.split(flat, np.cumsum(sizes)[:-1])
    return {n: _unit(part.reshape(shapes[n])) for n, part in zip(names, parts, strict=True)}


def spectral_penalty(kernels, vectors, rounds=ROUNDS):
    """The sum of all convolutions' largest singular values, as (out × rest) matrices.

    Args:
      kernels: from `effective_kernels`, (k, k, in, out), stacked or not.
      vectors: what the last step left, or `init_spectral_vectors`.
      rounds: of power iteration, at least 1; may be traced.

    Returns:
      the penalty, with gradient through the kernels only, and the new vectors.
    """
    matrices = _matrices_by_shape(kernels)
    fixed = jax.lax.stop_gradient(matrices)

    def one_round(_, right):
        return {name: _unit(_times_left(m, _times(m, right[name]))) for name, m in fixed.items()}

    # A loop, though it is short: unrolled, it would be a large part of the program to compile.
    right = jax.lax.fori_loop(0, rounds - 1, one_round, vectors)
    total, updated = 0.0, {}
    for name, matrix in matrices.items():
        left = _unit(_times(fixed[name], right[name]))
        # Both the next right vector and, along it, the singular value.
        image = _times_left(matrix, left)
        updated[name] = jax.lax.stop_gradient(_unit(image))
        total += jnp.sum(image * updated[name])
    return total, updated


def _matrices_by_shape(kernels):
    """(n, rest, out) arrays under the names of their shapes."""
    matrices = {}
    for path, kernel in _sorted_leaves(kernels):
        stack, rows, columns = _matrix_shape(path, kernel)
        matrix = kernel.reshape(stack, rows, columns)
        matrices.setdefault(f"{rows}x{columns}", []).append(matrix)
    return {name: jnp.concatenate(group) for name, group in matrices.items()}


def _times(matrices, right):
    """(n, rows) from (n, rows, columns) and (n, columns)."""
    return jnp.einsum("nrc,nc->nr", matrices, right)


def _times_left(matrices, left):
    """(n, columns) from (n, rows, columns) and (n, rows)."""
    return jnp.einsum("nrc,nr->nc", matrices, left)


def batch_norm_penalty(params):
    """The sum over batch norms of the largest |scale|."""
    scales = [p for path, p in _sorted_leaves(params) if path[-1] == "scale"]
    return sum(jnp.abs(scale).max(-1).sum() for scale in scales) if scales else jnp.zeros(())


def _sorted_leaves(tree):
    return sorted(traverse_util.flatten_dict(tree).items())


def _matrix_shape(path, kernel):
    """(matrices, rows = rest, columns = out) of a kernel, with a leading axis where stacked."""
    if kernel.ndim not in (4, 5):
        raise ValueError(f"kernel {'/'.join(path)} has shape {kernel.shape}, not (k, k, in, out)")
    stack = kernel.shape[0] if kernel.ndim == 5 else 1
    return stack, math.prod(kernel.shape[-4:-1]), kernel.shape[-1]


def _unit(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)
