"""Runs the groups of one scale: a module applied several times, with stacked parameters.

As a loop, all groups share one body, which compiles quickly. Unrolled, the intermediates of the
gradient need not be copied to and from stacked arrays, and the compiler can optimise across groups.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nvae_jax.models.remat import remat_group
from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import Portable

# Collections whose arrays have a leading axis with one entry per group.
STACKED = ("params", "batch_stats")


def run_groups(
    parent: nn.Module,
    module: partial,
    carry: Any,
    inputs: Sequence[Any],
    train: bool,
    *,
    name: str,
    unroll: int,
    remat: str,
    ops: Ops,
) -> tuple[Any, list[Any]]:
    """Applies the groups one after the other.

    Args:
      parent: the module whose compact method calls this function.
      module: a `functools.partial` of a module class with __call__(carry, inputs, train) ->
        (carry, output), with the factory of its cells as keyword `cell`.
      carry: the first group's carry.
      inputs: a list with the inputs of each group, trees of equal shapes.
      train: whether batch norm uses batch statistics.
      name: name of the groups' variables among those of `parent`.
      unroll: number of groups per iteration of the loop; if there are no more groups, there is no
        loop.
      remat: one of `remat.POLICIES`.
      ops: the `ops.interface.Ops` that unstack the groups' variables.

    Returns:
      the last carry, and a list with the output of each group.
    """
    length = len(inputs)
    looped = unroll < length
    group, cell = remat_group(remat, module.func, module.keywords["cell"], looped)
    keywords = {**module.keywords, "cell": cell}
    # Variables are always initialised in Flax's scan, because that splits the random keys.
    if looped or parent.is_mutable_collection("params"):
        scanned = nn.scan(
            group,
            variable_axes={collection: 0 for collection in STACKED},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]: one per argument
            length=length,
            unroll=min(unroll, length),
        )
        carry, outputs = scanned(**keywords, name=name)(carry, _stack(inputs), train)
        return carry, Portable().unstack(outputs, length)

    mutable = [name for name in STACKED if parent.is_mutable_collection(name)]
    detached = group(**keywords, parent=None)

    # With jit, the group is traced, differentiated and lowered only once.
    @jax.jit
    def run(variables, carry, x):
        return detached.apply(variables, carry, x, train, mutable=mutable)

    variables = parent.variables
    stacked = {col: variables[col][name] for col in STACKED if name in variables.get(col, {})}
    outputs, changed = [], []
    for group_variables, x in zip(ops.unstack(stacked, length), inputs, strict=True):
        (carry, output), new = run(group_variables, carry, x)
        outputs.append(output)
        changed.append(new)
    for collection in changed[0]:
        parent.put_variable(collection, name, _stack([new[collection] for new in changed]))
    return carry, outputs


def _stack(trees):
    """Stacks the arrays of a list of trees on a new leading axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)
