"""Collections of images made of others, at the moment of reading."""

from __future__ import annotations

import types
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax.data.images import Box, Images, fit

_NO_BOXES: Mapping[tuple[int, int], Box] = types.MappingProxyType({})


class Resized:
    """Images cropped and resized when they are read. Those of the right size stay as they are.

    `boxes` has the crop for images of a certain (H, W); all others lose what is not in the largest
    square in their centre.
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
    """Some of the images, in a given order."""

    def __init__(self, images: Images, indices: ArrayLike):
        self._images, self._indices = images, np.asarray(indices, np.int64)
        self.shape = (len(self._indices), *images.shape[1:])

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._images[int(self._indices[index])]


class Stacked:
    """Three grey images as the colours of one, drawn by index: always the same three."""

    def __init__(self, images: Images):
        self._images = images
        self.shape = (*images.shape[:3], 3)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        chosen = np.random.default_rng((0, index)).integers(len(self._images), size=3)
        return np.concatenate([self._images[int(i)] for i in chosen], axis=-1)


class Inverted:
    """Images with black and white exchanged."""

    def __init__(self, images: Images):
        self._images, self.shape = images, images.shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        return 255 - self._images[index]


def validation_tenth(count: int, held_out: bool) -> np.ndarray:
    """Indices of a fixed random tenth of `count` images (rounded down), or of the rest."""
    order = np.random.RandomState(0).permutation(count)  # A stream that NumPy never changes.
    return np.sort(order[: count // 10] if held_out else order[count // 10 :])
