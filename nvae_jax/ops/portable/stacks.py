"""Taking stacked arrays apart."""

import jax
from jax import lax


def split(stack: jax.Array, length: int) -> list[jax.Array]:
    """The `length` entries of an array with a leading axis."""
    # Not slices: the gradient of those is a sum of arrays of the whole size, one an entry.
    return [part.squeeze(0) for part in lax.split(stack, [1] * length)]
