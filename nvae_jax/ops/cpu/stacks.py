"""Taking arrays apart that are stacked on a leading axis, many at once, by the C++ kernels.

What reads the entries is then the same program for each of them. A compiler that sees slices makes
them part of it, and every one another: more to compile.
"""

from collections.abc import Sequence
from functools import partial

import jax

from nvae_jax.ops.cpu import native


@partial(jax.custom_vjp, nondiff_argnums=(1,))
@partial(jax.jit, static_argnums=1)
def unstack(leaves: Sequence[jax.Array], length: int) -> list[list[jax.Array]]:
    """The `length` entries of each of a list of arrays, as a list of lists."""
    shapes = [leaf.shape[1:] for leaf in leaves]
    flat = native.call("unstack", shapes * length, *leaves)
    return [flat[i * len(leaves) :][: len(leaves)] for i in range(length)]


def _stack(length, _, entries):
    shapes = [(length, *part.shape) for part in entries[0]]
    return (native.call("stack", shapes, *(part for entry in entries for part in entry)),)


unstack.defvjp(lambda leaves, length: (unstack(leaves, length), None), _stack)
