"""1,797 handwritten digits that are part of the package, so that no download is needed.

digits.npz contains the images of scikit-learn's `load_digits`, which are the test set of E.
Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49; licence CC BY 4.0). Only their type was changed,
to uint8.
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
    """The format of the digits, which are in the package rather than in a folder."""

    looks_like = "digits.npz of this package"

    def find(self, directory: pathlib.Path) -> Mapping[str, str]:
        """Returns both splits, whatever the folder."""
        del directory
        return {split: split for split in SIZES}

    def open(self, found: str, split: str, channels: int, max_value: int = 0) -> np.ndarray:
        """Reads all images of a split, uint8 (N, 16, 16, 1)."""
        del found, channels, max_value
        return read_images(split)


@functools.cache
def read_images(split: str) -> np.ndarray:
    """Reads the digits of a split, enlarged from 8x8: uint8 (N, 16, 16, 1), read-only.

    The data set is distributed without splits. A fixed permutation (NumPy's RandomState(0), whose
    stream never changes) assigns the first 1,500 images to "train" and the other 297 to "test".
    """
    with np.load(FILE) as file:
        levels = file["images"]  # (1797, 8, 8), values 0 to 16
    images = np.stack([_enlarge(image) for image in chosen(levels, split)])[..., None]
    images.flags.writeable = False  # all callers get the same array
    return images


def chosen(array: np.ndarray, split: str) -> np.ndarray:
    """Selects a split's rows of an array (1797, ...) that is in the order of the file, which is
    scikit-learn's."""
    order = np.random.RandomState(0).permutation(len(array))
    return array[order[: SIZES["train"]] if split == "train" else order[SIZES["train"] :]]


def _enlarge(levels: np.ndarray) -> np.ndarray:
    """Converts levels (8, 8) from 0 to 16 to a sharp grey image (16, 16).

    Each level is the number of inked pixels in a 4x4 block of a black-and-white scan. The contour
    at half coverage restores the strokes. Levels that were only enlarged would become noise when
    they are binarised.
    """
    fine = Image.fromarray(levels.astype(np.float32)).resize((64, 64), Image.Resampling.BICUBIC)
    ink = Image.fromarray(np.where(np.asarray(fine) > 8, 255, 0).astype(np.uint8))
    return np.asarray(ink.resize((_SIZE, _SIZE), Image.Resampling.BOX))
