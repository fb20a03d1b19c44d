"""The optimiser's step; a few kernels write the many small parameters."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.typing import ArrayLike

from nvae_jax.ops.gpu.options import BLOCK, MAX_RESULTS, options
from nvae_jax.ops.portable.optimizer import SMALL, concatenate_small
from nvae_jax.trees import by_name


def optimizer_step(
    optimizer: Any, gradients: Any, state: Any, params: Any, accept: ArrayLike, interpret: bool
) -> tuple[Any, Any]:
    """`Ops.optimizer_step`. Everything is computed with concatenated arrays, which the last kernels
    split into the parameters."""
    old = concatenate_small(params)
    updates, new_state = optimizer.concatenated.update(concatenate_small(gradients), state, old)
    new = optax.apply_updates(old, updates), new_state
    new, state = optax.tree.where(accept, new, (old, state))
    leaves = by_name(params)
    small = [leaf for leaf in leaves.values() if leaf.size < SMALL]
    written = iter(write_parts(new["small"], small, interpret) if small else ())
    found = [next(written) if leaf.size < SMALL else new[name] for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(params), found), state


def write_parts(vector: jax.Array, arrays: list[jax.Array], interpret: bool) -> list[jax.Array]:
    """Returns arrays with the shapes of `arrays` and consecutive parts of `vector` as values."""
    written, start = [], 0
    for first in range(0, len(arrays), MAX_RESULTS):
        some = arrays[first : first + MAX_RESULTS]
        flat = [array.reshape(-1) for array in some]
        results = pl.pallas_call(
            partial(_kernel, start=start),
            out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in flat],
            grid=(pl.cdiv(max(array.size for array in flat), BLOCK),),
            input_output_aliases={1 + i: i for i in range(len(flat))},
            name="write_parts",
            **options(interpret),
        )(vector, *flat)
        written += [new.reshape(old.shape) for new, old in zip(results, some, strict=True)]
        start += sum(math.prod(array.shape) for array in some)
    return written


def _kernel(vector, *refs, start):
    numbers = pl.program_id(0) * BLOCK + jnp.arange(BLOCK)
    for result in refs[len(refs) // 2 :]:  # ahead of these the old values, in the same places
        inside = numbers < result.shape[0]
        values = plgpu.load(vector.at[start + numbers], mask=inside)
        plgpu.store(result.at[numbers], values, mask=inside)
        start += result.shape[0]
