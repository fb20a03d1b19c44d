"""Taking arrays apart that are stacked on a leading axis."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from nvae_jax.ops import native
from nvae_jax.ops.by_platform import by_platform


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Entry:
    """An entry of a stack that is still in there: what reads it may do without a copy of it.

    Attributes:
      stack: (n, ...), float32.
      index: of the entry, an integer.
    """

    stack: jax.Array
    index: jax.Array

    def astype(self, dtype):
        """The entry in another dtype: taken out, if it is not its own."""
        return self if dtype == self.stack.dtype else taken(self).astype(dtype)


def taken(array):
    """An array: an `Entry` as one of its own, and others as they are."""
    return _take(array.stack, array.index) if isinstance(array, Entry) else array


def entry(array):
    """An `Entry`: an array as that of a stack of one, and entries as they are."""
    return array if isinstance(array, Entry) else Entry(array[None], jnp.zeros((), jnp.int32))


# Not a slice: see `unstack`.
@jax.custom_vjp
@jax.jit
def _take(stack, index):
    return by_platform(stack, index, cpu=_native_take, default=_slice)


def _native_take(stack, index):
    return native.call("entry", stack.shape[1:], index, stack)


def _slice(stack, index):
    return lax.dynamic_index_in_dim(stack, index, keepdims=False)


def _take_bwd(residuals, g):
    return jax.vjp(_slice, *residuals)[1](g)


_take.defvjp(lambda *given: (_take(*given), given), _take_bwd)


def unstack(tree, length, implementation=None, late=None):
    """The `length` entries of a tree of arrays with a leading axis, as a list of trees.

    Args:
      implementation: "native" for one call of `nvae_jax.ops.native` where all arrays are float32.
        What reads the entries is then the same program for each of them: a compiler that sees
        slices makes them part of it, and every one another. Otherwise, and for all other names,
        they are slices.
      late: which arrays the native call leaves in their stacks, as an `Entry` each, for what reads
        them to decide; a function of an array.
    """
    leaves, structure = jax.tree.flatten(tree)
    if implementation == "native" and all(leaf.dtype == jnp.float32 for leaf in leaves) and leaves:
        entries = _unstack_some(leaves, length, late or (lambda _: False))
    else:
        entries = _slices(leaves, length=length)
    return [jax.tree.unflatten(structure, parts) for parts in entries]


def _unstack_some(leaves, length, late):
    """`_unstack`, with an `Entry` in the place of what is late."""
    now = [leaf for leaf in leaves if not late(leaf)]
    unstacked = _unstack(now, length) if now else [[]] * length
    for number, parts in enumerate(map(iter, unstacked)):
        index = jnp.asarray(number, jnp.int32)
        yield [Entry(leaf, index) if late(leaf) else next(parts) for leaf in leaves]


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
