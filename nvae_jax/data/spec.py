"""The specification of a data set, and the errors for faulty data."""

from __future__ import annotations

import dataclasses

import numpy as np

from nvae_jax import paths


class DataError(ValueError):
    """Faulty data or a request that they cannot satisfy; the message is one line for the user."""


class CorruptError(DataError):
    """A fault of a single image; with `skip_corrupt` the image is skipped and counted."""


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """A data set and how its images are prepared for the model.

    Attributes:
      name: a data set of `sources.py`.
      dir: folder of its files; "" uses the data set's default folder.
      image_size: height and width of the model's input, with padding; 0 uses that of the data.
      channels: 1 (grey) or 3 (colour); 0 uses that of the data.
      padding: zeros on each side, included in `image_size`.
      max_value: value of white in images of more than 8 bits; 0 uses the value that the files
        state, or else the largest value of their bits, which is an error if the images would then
        be nearly black.
      num_bits: bits per image value; if the files have more, the low bits are dropped. More than 8
        are supported for grey images and arrays of 16 bits.
      binarize: whether to draw each pixel from Bernoulli(value / 255), anew whenever it is read.
      horizontal_flip: whether to mirror training images with probability one half.
      skip_corrupt: whether to skip and count unreadable images instead of stopping.
      workers: number of processes that read and decode; 0 uses threads of this process.
      threads: number of reading threads of this process, or of each worker. More than 2 help only
        if decoding dominates, because they share one interpreter lock.
    """

    name: str
    dir: str = ""
    image_size: int = 32
    channels: int = 1
    padding: int = 0
    num_bits: int = 8
    binarize: bool = False
    horizontal_flip: bool = False
    skip_corrupt: bool = False
    workers: int = 0
    threads: int = 2
    max_value: int = 0

    def __post_init__(self):
        _require(isinstance(self.name, str) and self.name, "name must be the name of a data set")
        if self.dir:
            paths.parse(self.dir, "data.dir")
        _require(
            self.channels in (0, 1, 3),
            f"channels must be 1 or 3, not {self.channels}",
        )
        _require(1 <= self.num_bits <= 16, f"num_bits must be 1 to 16, not {self.num_bits}")
        _require(
            0 <= self.max_value < 2**32,
            f"max_value must be 0, or the value of white, not {self.max_value}",
        )
        _require(self.padding >= 0, f"padding must not be negative, but is {self.padding}")
        _require(self.workers >= 0, f"workers must not be negative, but is {self.workers}")
        _require(self.threads >= 1, f"threads must be at least 1, not {self.threads}")
        _require(
            self.image_size == 0 or self.image_size > 2 * self.padding,
            f"image_size={self.image_size} leaves no image between padding={self.padding}",
        )
        _require(
            not (self.binarize and self.num_bits != 8),
            "binarize takes all 8 bits as probabilities: leave num_bits at 8",
        )

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The type of the images that readers return, over its full range."""
        return np.uint8 if self.num_bits <= 8 else np.uint16

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of one image as the model sees it, with padding."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def unpadded_size(self) -> int:
        """Height and width of one image without padding."""
        return self.image_size - 2 * self.padding

    @property
    def unpadded_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of one image without padding."""
        return (self.unpadded_size, self.unpadded_size, self.channels)

    def unbinarized(self) -> DataSpec:
        """The same data set without binarisation, padding and flips, for comparisons."""
        return dataclasses.replace(
            self, image_size=self.unpadded_size, padding=0, binarize=False, horizontal_flip=False
        )


def _require(condition, message: str):
    if not condition:
        raise DataError(f"data.{message}")
