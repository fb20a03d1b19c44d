"""1,797 handwritten digits that are part of the package: real images that need no network.

digits.npz holds the images of scikit-learn's `load_digits`, which are the test set of E. Alpaydin
and C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49; licence CC BY 4.0). They are unchanged but for their type, uint8.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

FILE = pathlib.Path(__file__).with_name("digits.npz")
SIZES = {"train": 1500, "test": 297}
_SIZE = 16


class Digits:
    """The format of the digits: they are in a package, so there is no folder to look in."""

    looks_like = "digits.npz of this package"

    def find(self, directory: pathlib.Path) -> Mapping[str, str]:
        """Both splits, wherever one looks."""
        del directory
        return {split: split for split in SIZES}

    def open(self, found: str, split: str, channels: int, max_value: int = 0) -> np.ndarray:
        """All images of a split, uint8 (N, 16, 16, 1)."""
        del found, channels, max_value
        return read_images(split)


@functools.cache
def read_images(split: str) -> np.ndarray:
    """The digits of a split, enlarged from 8x8: uint8 (N, 16, 16, 1), read-only.

    The set has no split of its own. Here a fixed permutation (NumPy's RandomState(0), whose
    stream never changes) puts the first 1,500 in "train" and the other 297 in "test".
    """
    with np.load(FILE) as file:
        levels = file["images"]  # (1797, 8, 8), values 0 to 16
    images = np.stack([_enlarge(image) for image in chosen(levels, split)])[..., None]
    images.flags.writeable = False  # everybody is given the same
    return images


def chosen(array: np.ndarray, split: str) -> np.ndarray:
    """A split's part of an array (1797, ...) in the order of the file, which is scikit-learn's."""
    order = np.random.RandomState(0).permutation(len(array))
    return array[order[: SIZES["train"]] if split == "train" else order[SIZES["train"] :]]


def _enlarge(levels: np.ndarray) -> np.ndarray:
    """Coverage (8, 8) of 0 to 16 to a crisp grey image (16, 16).

    Each level counts the inked pixels of a 4x4 block of a black-and-white scan. Taking the contour
    at half coverage brings the strokes back, which merely enlarged levels, drawn as binary
    pixels, would drown in noise.
    """
    fine = Image.fromarray(levels.astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC)
    ink = Image.fromarray(np.where(np.asarray(fine) > 8, 255, 0).astype(np.uint8))
    return np.asarray(ink.resize((_SIZE, _SIZE), Image.Resampling.BOX))
