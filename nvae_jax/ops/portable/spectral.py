"""The largest singular values of all convolutions by power iteration (paper, section 3.2).

Matrices of the same shape are processed together, with one batched product per shape.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util


def spectral_penalty(
    kernels: Any, vectors: Mapping[str, jax.Array], rounds: int
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """`Ops.spectral_penalty`."""
    matrices = _matrices_by_shape(kernels)
    fixed = jax.lax.stop_gradient(matrices)

    # The vector between the two products need not have unit length.
    def one_round(_, right):
        return {name: unit(_times_left(m, _times(m, right[name]))) for name, m in fixed.items()}

    # It is a loop, because unrolled it would be a large part of the program to compile. Its length
    # is a constant; otherwise a GPU would wait after each round to check whether there is another.
    right = jax.lax.fori_loop(0, rounds - 1, one_round, vectors)
    total, updated = 0.0, {}
    for name, matrix in matrices.items():
        left = unit(_times(fixed[name], right[name]))
        # Its direction is the next right vector, and its length the singular value.
        image = _times_left(matrix, left)
        updated[name] = jax.lax.stop_gradient(unit(image))
        total += jnp.sum(image * updated[name])
    return jnp.asarray(total), kernels, updated


def _matrices_by_shape(kernels):
    """Returns {name of the shape: (n, rest, out)}."""
    matrices = {}
    for path, kernel in sorted_leaves(kernels):
        stack, rows, columns = matrix_shape(path, kernel)
        matrix = kernel.reshape(stack, rows, columns)
        matrices.setdefault(shape_name(stack, rows, columns), []).append(matrix)
    return {name: jnp.concatenate(group) for name, group in matrices.items()}


def _times(matrices, right):
    """Products (n, rows) of matrices (n, rows, columns) and vectors (n, columns)."""
    return jnp.einsum("nrc,nc->nr", matrices, right, precision="highest")


def _times_left(matrices, left):
    """Products (n, columns) of vectors (n, rows) and matrices (n, rows, columns)."""
    return jnp.einsum("nrc,nr->nc", matrices, left, precision="highest")


def sorted_leaves(tree: Any) -> list[tuple[tuple[str, ...], jax.Array]]:
    """The (path, array) pairs of a tree, sorted by path."""
    return sorted(traverse_util.flatten_dict(tree).items())


def matrix_shape(path: Sequence[str], kernel: jax.Array) -> tuple[int, int, int]:
    """The shape (matrices, rest, out) of a kernel, or of a stack of kernels, seen as matrices."""
    if kernel.ndim not in (4, 5):
        raise ValueError(f"kernel {'/'.join(path)} has shape {kernel.shape}, not (k, k, in, out)")
    stack = kernel.shape[0] if kernel.ndim == 5 else 1
    return stack, math.prod(kernel.shape[-4:-1]), kernel.shape[-1]


def shape_name(_: int, rows: int, columns: int) -> str:
    """The name of a matrix shape, under which its vectors are stored."""
    return f"{rows}x{columns}"


def unit(x: jax.Array) -> jax.Array:
    """Divides vectors (..., n) by their norms."""
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)
