"""Masks of the known pixels: some by name, others from files."""

import numpy as np

from nvae_jax import inputs, paths
from nvae_jax.data.images import SUFFIXES

NAMES = {
    "center": "the middle square of half the height is unknown",
    "half": "the right half is unknown",
    "random": "half of the pixels are, others in each image",
}


def load(name: str, size: int, num: int, seed: int = 0) -> np.ndarray:
    """A mask, 1 where a pixel is known.

    Args:
      name: one of `NAMES`, or a file: a picture, white where pixels are known, or .npy or .npz with
        one array.
      size: height and width of the images.
      num: how many images.
      seed: of "random".

    Returns:
      (H, W), or (N, H, W) where images differ: not checked, if it is a file's.

    Raises:
      ValueError: no such file, or one that has no mask.
    """
    if name not in NAMES:
        return _read(paths.parse(name, "mask"))
    if name == "random":
        return np.random.default_rng(seed).random((num, size, size)) < 0.5
    known = np.ones((size, size), bool)
    quarter = size // 4
    hole = np.s_[quarter : size - quarter] if name == "center" else np.s_[:]
    known[hole, quarter : size - quarter] = False
    if name == "half":
        known = np.broadcast_to(np.arange(size) < size // 2, (size, size))
    return known


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
