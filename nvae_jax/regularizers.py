"""Spectral norm of every convolution, and the largest batch-norm scales (paper, section 3.2).

Matrices of one shape are iterated on together: one batched product a shape, not one a layer.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nvae_jax.ops import native

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
        name = _shape_name(stack, rows, columns)
        shapes[name] = (shapes.get(name, (0,))[0] + stack, columns)
    names = sorted(shapes)
    sizes = [math.prod(shapes[name]) for name in names]
    lengths = np.concatenate([np.full(*shapes[name]) for name in names])
    # One draw, and one division by the norms: each is a good deal to compile.
    flat = _unit_segments(jax.random.normal(key, (sum(sizes),)), lengths)
    parts = jnp.split(flat, np.cumsum(sizes)[:-1])
    return {n: part.reshape(shapes[n]) for n, part in zip(names, parts, strict=True)}


def _unit_segments(x, lengths):
    """`_unit` of the vectors of the given lengths that `x` (sum of lengths,) consists of."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    squares = jax.ops.segment_sum(x**2, owner, len(lengths), indices_are_sorted=True)
    return x / (jnp.sqrt(squares) + 1e-12)[owner]


def spectral_penalty(kernels, vectors, rounds=ROUNDS, implementation=None):
    """The sum of all convolutions' largest singular values, as (out × rest) matrices.

    Args:
      kernels: from `effective_kernels`, (k, k, in, out), stacked or not.
      vectors: what the last step left, or `init_spectral_vectors`.
      rounds: of power iteration, at least 1; may be traced.
      implementation: "native" for `nvae_jax.ops.native`; otherwise XLA's.

    Returns:
      the penalty, with gradient through the kernels only; the kernels, to be used from here on (the
      gradient of the penalty is added to that of what they are used for, in place where native);
      the new vectors.
    """
    if implementation == "native":
        return _native_penalty(kernels, vectors, jnp.asarray(rounds, jnp.int32))
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
    return total, kernels, updated


@jax.custom_vjp
def _native_penalty(kernels, vectors, rounds):
    return _native_penalty_fwd(kernels, vectors, rounds)[0]


def _native_penalty_fwd(kernels, vectors, rounds):
    leaves, names = [leaf for _, leaf in _sorted_leaves(kernels)], sorted(vectors)
    starts = [vectors[name] for name in names]
    rows = sum(leaf.size // leaf.shape[-1] for leaf in leaves)
    results = [(), (rows,), *(start.shape for start in starts)]
    where = _places_of_vectors(kernels)
    penalty, lefts, *rights = native.call("spectral", results, rounds, *leaves, *starts, **where)
    return (penalty, kernels, dict(zip(names, rights, strict=True))), (lefts, rights)


def _native_penalty_bwd(residuals, cotangents):
    lefts, rights = residuals
    scale, gradients, _ = cotangents
    paths, leaves = zip(*_sorted_leaves(gradients), strict=True)
    leaves = native.call(
        "spectral_grad",
        [leaf.shape for leaf in leaves],
        scale,
        lefts,
        *leaves,
        *rights,
        in_place={2 + i: i for i in range(len(leaves))},
        **_places_of_vectors(gradients),
    )
    return traverse_util.unflatten_dict(dict(zip(paths, leaves, strict=True))), None, None


_native_penalty.defvjp(_native_penalty_fwd, _native_penalty_bwd)


def _places_of_vectors(kernels):
    """For each kernel the array that its vectors are in, and the entry they start at there."""
    shapes = [_matrix_shape(path, kernel) for path, kernel in _sorted_leaves(kernels)]
    names, ends = sorted({_shape_name(*shape) for shape in shapes}), {}
    places, starts = [], []
    for stack, rows, columns in shapes:
        name = _shape_name(stack, rows, columns)
        places.append(names.index(name))
        starts.append(ends.get(name, 0))
        ends[name] = starts[-1] + stack * columns
    return {"places": places, "starts": starts}


def _matrices_by_shape(kernels):
    """(n, rest, out) arrays under the names of their shapes."""
    matrices = {}
    for path, kernel in _sorted_leaves(kernels):
        stack, rows, columns = _matrix_shape(path, kernel)
        matrix = kernel.reshape(stack, rows, columns)
        matrices.setdefault(_shape_name(stack, rows, columns), []).append(matrix)
    return {name: jnp.concatenate(group) for name, group in matrices.items()}


def _times(matrices, right):
    """(n, rows) from (n, rows, columns) and (n, columns)."""
    return jnp.einsum("nrc,nc->nr", matrices, right, precision="highest")


def _times_left(matrices, left):
    """(n, columns) from (n, rows, columns) and (n, rows)."""
    return jnp.einsum("nrc,nr->nc", matrices, left, precision="highest")


def batch_norm_penalty(params):
    """The sum over batch norms of the largest |scale|."""
    by_width = {}  # those of one width together: one maximum a width, not one a layer
    for path, scale in _sorted_leaves(params):
        if path[-1] == "scale":
            width = scale.shape[-1]
            by_width.setdefault(width, []).append(scale.reshape(-1, width))
    if not by_width:
        return jnp.zeros(())
    return sum(jnp.abs(jnp.concatenate(scales)).max(1).sum() for scales in by_width.values())


def _sorted_leaves(tree):
    return sorted(traverse_util.flatten_dict(tree).items())


def _matrix_shape(path, kernel):
    """(matrices, rows = rest, columns = out) of a kernel, with a leading axis where stacked."""
    if kernel.ndim not in (4, 5):
        raise ValueError(f"kernel {'/'.join(path)} has shape {kernel.shape}, not (k, k, in, out)")
    stack = kernel.shape[0] if kernel.ndim == 5 else 1
    return stack, math.prod(kernel.shape[-4:-1]), kernel.shape[-1]


def _shape_name(_, rows, columns):
    return f"{rows}x{columns}"


def _unit(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)
