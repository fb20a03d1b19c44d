"""Arrays that users hand in: their shapes and types, checked with chex."""

from collections.abc import Sequence
from typing import Any

import chex


def array(name: str, value: Any, shape: Sequence[int | str], dtype: Any = None) -> None:
    """Refuses an array of another shape or type; under `jit`, while it is traced.

    Args:
      name: of the array, for the message.
      value: the array, or anything with a shape and a dtype.
      shape: its sizes; text names one that may be anything.
      dtype: as in `chex.assert_type`: float, int, or one such as jnp.float32; None allows any.

    Raises:
      ValueError: in one line, what it is and what it should be.
    """
    try:
        chex.assert_shape(value, [size if isinstance(size, int) else None for size in shape])
    except AssertionError:
        wanted, found = ", ".join(map(str, shape)), tuple(value.shape)
        raise ValueError(f"{name} must be of shape ({wanted}), not {found}") from None
    if dtype is None:
        return
    try:
        chex.assert_type(value, dtype)
    except AssertionError:
        kind = getattr(dtype, "__name__", dtype)
        raise ValueError(f"{name} must be of type {kind}, not {value.dtype}") from None
