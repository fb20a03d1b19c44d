"""Splits the stacked parameters of a scale's groups, many arrays per kernel.

The groups' norms and gates are kernels of their own here, so that XLA cannot fuse the slices that
they are given: each would be a kernel, some 700 in a step of mnist's config.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from nvae_jax.ops.gpu.options import BLOCK, MAX_RESULTS, options

LARGEST = 2**12  # numbers of an entry; slices of larger ones are fused, or worth a kernel


def is_small(leaf: jax.Array) -> bool:
    """Whether these kernels split a stack (length, ...)."""
    return leaf.dtype == jnp.float32 and leaf.size <= LARGEST * leaf.shape[0]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def unstack(leaves: list[jax.Array], length: int, interpret: bool) -> list[list[jax.Array]]:
    """Splits each of a list of small stacks (length, ...) into a list of its entries."""
    per_kernel = max(MAX_RESULTS // length, 1)
    parts = [leaves[i : i + per_kernel] for i in range(0, len(leaves), per_kernel)]
    return [entries for part in parts for entries in _unstack(part, length, interpret)]


def _unstack(leaves, length, interpret):
    flat = [leaf.reshape(length, -1) for leaf in leaves]
    widest = max(leaf.shape[1] for leaf in flat)
    results = pl.pallas_call(
        partial(_kernel, length=length),
        out_shape=[
            jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in flat for _ in range(length)
        ],
        grid=(pl.cdiv(widest, BLOCK),),
        name="unstack",
        **options(interpret),
    )(*flat)
    return [
        [entry.reshape(leaf.shape[1:]) for entry in results[i * length :][:length]]
        for i, leaf in enumerate(leaves)
    ]


def _kernel(*refs, length):
    stacks = refs[: len(refs) // (length + 1)]
    results = iter(refs[len(stacks) :])
    numbers = pl.program_id(0) * BLOCK + jnp.arange(BLOCK)
    for stack in stacks:
        inside = numbers < stack.shape[1]
        for row in range(length):
            entry = plgpu.load(stack.at[row, numbers], mask=inside)
            plgpu.store(next(results).at[numbers], entry, mask=inside)


def _forward(leaves, length, interpret):
    return unstack(leaves, length, interpret), None


def _backward(length, interpret, _, entries):
    return ([jnp.stack(parts) for parts in entries],)


unstack.defvjp(_forward, _backward)
