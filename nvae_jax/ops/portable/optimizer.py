"""The optimiser's step, with all small arrays of a model joined to one vector.

Each array of the state costs a program of its own, and most of a model's arrays are small.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

SMALL = 2**12  # arrays of fewer entries are joined; none of this size is sharded


def optimizer_step(
    optimizer: Any, gradients: Any, state: Any, params: Any, accept: ArrayLike
) -> tuple[Any, Any]:
    """`Ops.optimizer_step`."""
    updates, state = optimizer.update(gradients, state, params, accept=accept)
    updated = optax.apply_updates(params, updates)
    return optax.tree.where(accept, updated, params), state


def global_norm(tree: Any) -> jax.Array:
    """`Ops.global_norm`."""
    return optax.tree.norm(join(tree))


def joined(
    optimizer: optax.GradientTransformationExtraArgs, limit: int = SMALL
) -> optax.GradientTransformationExtraArgs:
    """`optimizer` with all arrays of fewer than `limit` entries joined to one vector.

    For optimisers that treat every entry alike. The state has the large arrays under their paths,
    and the vector under "small".
    """

    def init(params):
        return optimizer.init(join(params, limit))

    def update(gradients, state, params, **extra):
        updates, state = optimizer.update(
            join(gradients, limit), state, join(params, limit), **extra
        )
        return _part(updates, params, limit), state

    return optax.GradientTransformationExtraArgs(init, update)


def join(tree: Any, limit: int = SMALL) -> dict[str, jax.Array]:
    """A tree of arrays as {path: large array, "small": all others as one vector}."""
    leaves = named_leaves(tree)
    joined = {name: leaf for name, leaf in leaves if leaf.size >= limit}
    small = [leaf.reshape(-1) for _, leaf in leaves if leaf.size < limit]
    return {**joined, "small": jnp.concatenate(small)} if small else joined


def _part(joined, like, limit):
    """The inverse of `join`, in the structure of the tree `like`."""
    leaves, start = [], 0
    for name, leaf in named_leaves(like):
        if leaf.size >= limit:
            leaves.append(joined[name])
        else:
            part = jax.lax.slice_in_dim(joined["small"], start, start + leaf.size)
            leaves.append(part.reshape(leaf.shape))
            start += leaf.size
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def named_leaves(tree: Any) -> list[tuple[str, jax.Array]]:
    """(path, array) pairs in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
