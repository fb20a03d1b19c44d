"""The groups of one scale: a module run several times, with parameters stacked on a leading axis.

As a loop there is one program for all groups, which compiles soon. Written out, nothing is copied
into and out of stacks of what the gradient keeps, and the compiler sees the groups side by side.
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

# Collections with one entry a group.
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
      parent: the module that runs them, in its compact method.
      module: a `functools.partial` of a module class with __call__(carry, inputs, train) ->
        (carry, output), and with the factory of its cells as `cell`.
      carry: what the first group is given.
      inputs: a list with the inputs of each group, trees of equal shapes.
      name: of the groups' variables in those of `parent`.
      unroll: groups that an iteration of the loop computes; no loop from as many on as there are.
      remat: one of `remat.POLICIES`.
      ops: `ops.interface.Ops`, for taking the groups' variables apart.

    Returns:
      the last carry, and a list with the output of each group.
    """
    length = len(inputs)
    looped = unroll < length
    group, cell = remat_group(remat, module.func, module.keywords["cell"], looped)
    keywords = {**module.keywords, "cell": cell}
    # New variables are made by Flax's scan, which is where it splits random keys.
    if looped or parent.is_mutable_collection("params"):
        scanned = nn.scan(
            group,
            variable_axes={collection: 0 for collection in STACKED},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]: one an argument
            length=length,
            unroll=min(unroll, length),
        )
        carry, outputs = scanned(**keywords, name=name)(carry, _stacked(inputs), train)
        return carry, Portable().unstack(outputs, length)

    mutable = [name for name in STACKED if parent.is_mutable_collection(name)]
    detached = group(**keywords, parent=None)

    # jit, so that the groups are traced, differentiated and lowered once.
    @jax.jit
    def run(variables, carry, x):
        return detached.apply(variables, carry, x, train, mutable=mutable)

    variables = parent.variables
    mine = {col: variables[col][name] for col in STACKED if name in variables.get(col, {})}
    outputs, changed = [], []
    for given, x in zip(ops.unstack(mine, length), inputs, strict=True):
        (carry, output), new = run(given, carry, x)
        outputs.append(output)
        changed.append(new)
    for collection in changed[0]:
        parent.put_variable(collection, name, _stacked([new[collection] for new in changed]))
    return carry, outputs


def _stacked(trees):
    """A list of trees as one, whose arrays have a leading axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)
