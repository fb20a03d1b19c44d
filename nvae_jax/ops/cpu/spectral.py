"""Spectral norms with the C++ kernels: one call for all convolutions, which compiles faster."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from nvae_jax.ops.cpu import native
from nvae_jax.ops.portable.spectral import matrix_shape, shape_name, sorted_leaves


def spectral_penalty(
    kernels: Any, vectors: Mapping[str, jax.Array], rounds: int
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """`Ops.spectral_penalty`."""
    return _penalty(kernels, vectors, jnp.asarray(rounds, jnp.int32))


@jax.custom_vjp
def _penalty(kernels, vectors, rounds):
    return _penalty_fwd(kernels, vectors, rounds)[0]


def _penalty_fwd(kernels, vectors, rounds):
    leaves, names = [leaf for _, leaf in sorted_leaves(kernels)], sorted(vectors)
    starts = [vectors[name] for name in names]
    rows = sum(leaf.size // leaf.shape[-1] for leaf in leaves)
    results = [(), (rows,), *(start.shape for start in starts)]
    where = _places_of_vectors(kernels)
    penalty, lefts, *rights = native.call("spectral", results, rounds, *leaves, *starts, **where)
    return (penalty, kernels, dict(zip(names, rights, strict=True))), (lefts, rights)


def _penalty_bwd(residuals, cotangents):
    lefts, rights = residuals
    scale, gradients, _ = cotangents
    paths, leaves = zip(*sorted_leaves(gradients), strict=True)
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


_penalty.defvjp(_penalty_fwd, _penalty_bwd)


def _places_of_vectors(kernels) -> dict[str, Any]:
    """For each kernel the index of the array that contains its vectors, and their first entry."""
    shapes = [matrix_shape(path, kernel) for path, kernel in sorted_leaves(kernels)]
    names, ends = sorted({shape_name(*shape) for shape in shapes}), {}
    places, starts = [], []
    for stack, rows, columns in shapes:
        name = shape_name(stack, rows, columns)
        places.append(names.index(name))
        starts.append(ends.get(name, 0))
        ends[name] = starts[-1] + stack * columns
    return {"places": places, "starts": starts}
