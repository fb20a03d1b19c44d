"""Views of image collections that transform images when they are read."""

from __future__ import annotations

import types
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax.data.images import Box, Images, fit

_NO_BOXES: Mapping[tuple[int, int], Box] = types.MappingProxyType({})


class Resized:
    """Images cropped and resized to (size, size) when they are read, unless they have that size.

    `boxes` is {(H, W): crop}; images of other sizes are cropped to the largest square in their
    centre.
    """

    def __init__(self, images: Images, size: int, boxes: Mapping[tuple[int, int], Box] = _NO_BOXES):
        self._images, self._size, self._boxes = images, size, dict(boxes)
        self.shape = (len(images), size, size, images.shape[-1])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        image = self._images[index]
        if image.shape[:2] == (self._size, self._size):
            return image
        return fit(image, self._size, self._boxes.get(image.shape[:2]))


class Subset:
    """The images with the given indices, in that order."""

    def __init__(self, images: Images, indices: ArrayLike):
        self._images, self._indices = images, np.asarray(indices, np.int64)
        self.shape = (len(self._indices), *images.shape[1:])

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._images[int(self._indices[index])]


class Stacked:
    """Colour images made of three grey ones; image i always has the same three, drawn at random."""

    def __init__(self, images: Images):
        self._images = images
        self.shape = (*images.shape[:3], 3)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        chosen = np.random.default_rng((0, index)).integers(len(self._images), size=3)
        return np.concatenate([self._images[int(i)] for i in chosen], axis=-1)


class Inverted:
    """Images with inverted values, so that black becomes white."""

    def __init__(self, images: Images):
        self._images, self.shape = images, images.shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        return 255 - self._images[index]


def validation_tenth(count: int, held_out: bool) -> np.ndarray:
    """Indices of a fixed random tenth of `count` images (rounded down), or of the others."""
    order = np.random.RandomState(0).permutation(count)  # NumPy never changes this stream.
    return np.sort(order[: count // 10] if held_out else order[count // 10 :])
