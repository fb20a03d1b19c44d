"""The groups of one scale: a module run several times, with parameters stacked on a leading axis.

As a loop there is one program for all groups, which compiles soon. Written out, nothing is copied
into and out of stacks of what the gradient keeps, and the compiler sees the groups side by side.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from nvae_jax.models.remat import remat_group
from nvae_jax.ops.stacks import unstack

# Collections with one entry a group.
STACKED = ("params", "batch_stats")


def run_groups(
    parent, module, carry, inputs, train, *, name, length, unroll, remat, implementation=None
):
    """Applies the groups one after the other.

    Args:
      parent: the module that runs them, in its compact method.
      module: a `functools.partial` of a module class with __call__(carry, inputs, train) ->
        (carry, output), and with the factory of its cells as `cell`.
      carry: what the first group is given.
      inputs: of all groups: a tree with a leading axis of groups, or a list of trees.
      name: of the groups' variables in those of `parent`.
      length: the number of groups.
      unroll: groups that an iteration of the loop computes; no loop from `length` on.
      remat: one of `remat.POLICIES`.
      implementation: see `nvae_jax.ops.stacks.unstack`.

    Returns:
      the last carry, and all outputs: a tree with a leading axis, or a list without a loop.
    """
    looped = unroll < length
    group, cell = remat_group(remat, module.func, module.keywords["cell"], looped)
    keywords = {**module.keywords, "cell": cell}
    # New variables are made by Flax's scan, which is where it splits random keys.
    if looped or parent.is_mutable_collection("params"):
        scanned = nn.scan(
            group,
            variable_axes={collection: 0 for collection in STACKED},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=length,
            unroll=min(unroll, length),
        )
        return scanned(**keywords, name=name)(carry, stacked(inputs), train)

    mutable = [name for name in STACKED if parent.is_mutable_collection(name)]
    detached = group(**keywords, parent=None)

    # jit, so that the groups are traced, differentiated and lowered once.
    @jax.jit
    def run(variables, carry, x):
        return detached.apply(variables, carry, x, train, mutable=mutable)

    variables = parent.variables
    mine = {col: variables[col][name] for col in STACKED if name in variables.get(col, {})}
    # Some kernels are best read where they are. Training needs gradients for all as one stack.
    late = None if train else _is_kernel
    each = {col: unstack(tree, length, implementation, late) for col, tree in mine.items()}
    outputs, changed = [], []
    for i in range(length):
        given = {collection: parts[i] for collection, parts in each.items()}
        (carry, output), new = run(given, carry, at(inputs, i))
        outputs.append(output)
        changed.append(new)
    for collection in changed[0]:
        parent.put_variable(collection, name, stacked([new[collection] for new in changed]))
    return carry, outputs


def _is_kernel(stack):
    """Whether arrays of this rank are kernels (groups, k, k, in, out) of convolutions."""
    return stack.ndim == 5


def stacked(parts):
    """A list of trees as one, with a leading axis; what is no list has that already."""
    if not isinstance(parts, list):
        return parts
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *parts)


def at(parts, index):
    """One of, or a slice of, what `stacked` takes."""
    if isinstance(parts, list):
        return parts[index]
    return jax.tree.map(lambda a: a[index], parts)
