"""Unstacks arrays."""

import jax
from jax import lax


def split(stack: jax.Array, length: int) -> list[jax.Array]:
    """Splits an array along its leading axis into its `length` entries."""
    # The gradient of slices would be a sum of full-size arrays, one per entry.
    return [part.squeeze(0) for part in lax.split(stack, [1] * length)]
