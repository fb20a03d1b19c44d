"""The largest singular values of all convolutions by power iteration (paper, section 3.2).

Matrices of one shape are iterated on together: one batched product a shape, not one a layer.
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

    # Between the two products a vector need not be of length one.
    def one_round(_, right):
        return {name: unit(_times_left(m, _times(m, right[name]))) for name, m in fixed.items()}

    # A loop, though it is short: unrolled, it would be a large part of the program to compile. Its
    # length is known ahead: a GPU would stop after each round to ask whether there is another.
    right = jax.lax.fori_loop(0, rounds - 1, one_round, vectors)
    total, updated = 0.0, {}
    for name, matrix in matrices.items():
        left = unit(_times(fixed[name], right[name]))
        # Both the next right vector and, along it, the singular value.
        image = _times_left(matrix, left)
        updated[name] = jax.lax.stop_gradient(unit(image))
        total += jnp.sum(image * updated[name])
    return jnp.asarray(total), kernels, updated


def _matrices_by_shape(kernels):
    """(n, rest, out) arrays under the names of their shapes."""
    matrices = {}
    for path, kernel in sorted_leaves(kernels):
        stack, rows, columns = matrix_shape(path, kernel)
        matrix = kernel.reshape(stack, rows, columns)
        matrices.setdefault(shape_name(stack, rows, columns), []).append(matrix)
    return {name: jnp.concatenate(group) for name, group in matrices.items()}


def _times(matrices, right):
    """(n, rows) from (n, rows, columns) and (n, columns)."""
    return jnp.einsum("nrc,nc->nr", matrices, right, precision="highest")


def _times_left(matrices, left):
    """(n, columns) from (n, rows, columns) and (n, rows)."""
    return jnp.einsum("nrc,nr->nc", matrices, left, precision="highest")


def sorted_leaves(tree: Any) -> list[tuple[tuple[str, ...], jax.Array]]:
    """(path, kernel) pairs in the order of their paths."""
    return sorted(traverse_util.flatten_dict(tree).items())


def matrix_shape(path: Sequence[str], kernel: jax.Array) -> tuple[int, int, int]:
    """(matrices, rows = rest, columns = out) of a kernel, with a leading axis where stacked."""
    if kernel.ndim not in (4, 5):
        raise ValueError(f"kernel {'/'.join(path)} has shape {kernel.shape}, not (k, k, in, out)")
    stack = kernel.shape[0] if kernel.ndim == 5 else 1
    return stack, math.prod(kernel.shape[-4:-1]), kernel.shape[-1]


def shape_name(_: int, rows: int, columns: int) -> str:
    """The name under which the vectors of matrices of a shape are kept."""
    return f"{rows}x{columns}"


def unit(x: jax.Array) -> jax.Array:
    """Vectors (..., n) divided by their norms."""
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)
