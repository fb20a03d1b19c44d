"""Taking arrays apart that are stacked on a leading axis."""

from functools import partial

import jax
import jax.numpy as jnp

from nvae_jax.ops import native
from nvae_jax.ops.by_platform import by_platform


def unstack(tree, length, implementation=None):
    """The `length` entries of a tree of arrays with a leading axis, as a list of trees.

    Args:
      implementation: "native" for one call of `nvae_jax.ops.native` where all arrays are float32.
        What reads the entries is then the same program for each of them: a compiler that sees
        slices makes them part of it, and every one another. Otherwise, and for all other names,
        they are slices.
    """
    leaves, structure = jax.tree.flatten(tree)
    if implementation == "native" and all(leaf.dtype == jnp.float32 for leaf in leaves) and leaves:
        entries = _unstack(leaves, length)
    else:
        entries = _slices(leaves, length=length)
    return [jax.tree.unflatten(structure, entry) for entry in entries]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
@partial(jax.jit, static_argnums=1)
def _unstack(leaves, length):
    return by_platform(
        leaves,
        cpu=partial(_native_unstack, length=length),
        default=partial(_slices, length=length),
    )


def _slices(leaves, *, length):
    return [[leaf[i] for leaf in leaves] for i in range(length)]


def _native_unstack(leaves, *, length):
    shapes = [leaf.shape[1:] for leaf in leaves]
    flat = native.call("unstack", shapes * length, *leaves)
    return [flat[i * len(leaves) :][: len(leaves)] for i in range(length)]


def _unstack_bwd(length, _, entries):
    return (by_platform(entries, cpu=_native_stack, default=_stack),)


def _stack(entries):
    return [jnp.stack(parts) for parts in zip(*entries, strict=True)]


def _native_stack(entries):
    shapes = [(len(entries), *part.shape) for part in entries[0]]
    return native.call("stack", shapes, *(part for entry in entries for part in entry))


_unstack.defvjp(lambda leaves, length: (_unstack(leaves, length), None), _unstack_bwd)
