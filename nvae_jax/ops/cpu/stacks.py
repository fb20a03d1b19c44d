"""Unstacks many arrays along their leading axis at once, with the C++ kernels.

The code that uses the entries is then the same for all of them. If the compiler saw slices, it
would fuse each into the code that uses it, which would make more code to compile.
"""

from collections.abc import Sequence
from functools import partial

import jax

from nvae_jax.ops.cpu import native


@partial(jax.custom_vjp, nondiff_argnums=(1,))
@partial(jax.jit, static_argnums=1)
def unstack(leaves: Sequence[jax.Array], length: int) -> list[list[jax.Array]]:
    """Splits each of a list of arrays into its `length` entries; returns a list per entry."""
    shapes = [leaf.shape[1:] for leaf in leaves]
    flat = native.call("unstack", shapes * length, *leaves)
    return [flat[i * len(leaves) :][: len(leaves)] for i in range(length)]


def _stack(length, _, entries):
    shapes = [(length, *part.shape) for part in entries[0]]
    return (native.call("stack", shapes, *(part for entry in entries for part in entry)),)


unstack.defvjp(lambda leaves, length: (unstack(leaves, length), None), _stack)
