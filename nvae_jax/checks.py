"""Checks the shapes and types of users' arrays with chex."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import chex
import numpy as np


@contextmanager
def naming(source: object) -> Iterator[None]:
    """A context that adds `source`, such as the path of a file, to the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def array(name: str, value: Any, shape: Sequence[int | str], dtype: Any = None) -> None:
    """Checks the shape and type of an array. Under `jit` this happens during tracing.

    Args:
      name: name of the array in the error message.
      value: the array, or anything with a shape and a dtype.
      shape: expected sizes; a string names an axis that can have any size.
      dtype: as in `chex.assert_type`: float, int, or a dtype such as jnp.float32; None allows any.

    Raises:
      ValueError: if it differs; one line with the actual and the expected shape or type.
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


def latents(
    arrays: Sequence[Any], shapes: Sequence[tuple[int, ...]], *, complete: bool = False
) -> list[np.ndarray]:
    """Checks latents, or noise of the same shapes, and converts them to float32.

    Args:
      arrays: a list of (N, h, w, z) arrays for the coarsest groups.
      shapes: (h, w, z) of all groups, coarsest first.
      complete: whether there must be an array for every group.

    Raises:
      ValueError: if a shape is wrong, or values are not finite floating-point numbers.
    """
    arrays = [np.asarray(z) for z in arrays]
    found = [z.shape for z in arrays]
    wanted = shapes[: None if complete else max(len(found), 1)]
    if [shape[1:] for shape in found] != list(wanted) or len({shape[0] for shape in found}) != 1:
        raise ValueError(
            f"latents have shapes {found}, but must be {len(wanted)} array(s) of (N, h, w, z) with "
            f"(h, w, z) = {list(wanted)}"
        )
    for group, z in enumerate(arrays):
        if not np.issubdtype(z.dtype, np.floating):
            raise ValueError(f"latents must be float, but group {group} is {z.dtype}")
        if not np.isfinite(z).all():
            raise ValueError(f"latents must be finite, but some of group {group} are not")
    return [z.astype(np.float32) for z in arrays]
