"""Masks of the known pixels: predefined ones by name, others from files."""

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import checks, inputs, paths
from nvae_jax.data.images import SUFFIXES

NAMES = {
    "center": "the middle square of half the height is unknown",
    "half": "the right half is unknown",
    "random": "a random half of the pixels of each image is unknown",
}


def load(name: str, size: int, num: int, seed: int = 0) -> np.ndarray:
    """Makes or reads a mask, which is 1 for each known pixel.

    Args:
      name: one of `NAMES`, or a file: a picture in which known pixels are white, or .npy or .npz
        with one array.
      size: height and width of the images.
      num: number of images.
      seed: seed of "random".

    Returns:
      (H, W) for all images, or (N, H, W) with one mask per image.

    Raises:
      ValueError: if there is no such file, or the file is not a mask of these images.
    """
    if name not in NAMES:
        mask = _read(paths.parse(name, "mask"))
        with checks.naming(name):
            check(mask, size, num)
        return mask
    if name == "random":
        return np.random.default_rng(seed).random((num, size, size)) < 0.5
    known = np.ones((size, size), bool)
    quarter = size // 4
    hole = np.s_[quarter : size - quarter] if name == "center" else np.s_[:]
    known[hole, quarter : size - quarter] = False
    if name == "half":
        known = np.broadcast_to(np.arange(size) < size // 2, (size, size))
    return known


def check(mask: ArrayLike, size: int, num: int) -> np.ndarray:
    """Checks a mask of `num` images of height and width `size`.

    Args:
      mask: (H, W), (1, H, W) or (N, H, W) of 0 and 1, or False and True.
      size: height and width.
      num: number of images.

    Returns:
      (N, H, W) bool.

    Raises:
      ValueError: for another shape, other values, or if no pixel of an image is known.
    """
    mask, shape = np.asarray(mask), (num, size, size)
    if mask.shape not in (shape[1:], (1, *shape[1:]), shape):
        raise ValueError(f"mask must be of shape {shape[1:]} or {shape}, not {mask.shape}")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("mask must be 1 for each known pixel and 0 for each unknown one")
    mask = np.broadcast_to(mask.astype(bool), shape)
    if not mask.any((1, 2)).all():
        raise ValueError("mask must leave at least one pixel of each image known")
    return mask


def _read(path):
    if path.suffix.lower() in inputs.ARRAYS:
        arrays = inputs.load_arrays(path)
        if len(arrays) != 1:
            raise ValueError(f"{path} must have one array, the mask, not {len(arrays)}")
        mask = next(iter(arrays.values()))
        return mask[..., 0] if mask.ndim == 4 else mask
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join((*NAMES, *inputs.ARRAYS, *SUFFIXES))
        raise ValueError(f"mask must be one of {known}, not {str(path)!r}")
    return inputs.load(path)[0].max(-1) > 127
