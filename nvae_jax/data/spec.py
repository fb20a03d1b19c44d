"""What the rest of the program may say about its data, and the error for faults in it."""

from __future__ import annotations

import dataclasses

import numpy as np

from nvae_jax import paths


class DataError(ValueError):
    """A fault in the data or in what was asked of it, told to the user in one line."""


class CorruptError(DataError):
    """A fault of one image only: with `skip_corrupt` it is counted and left out."""


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """One data set as the model sees it.

    Attributes:
      name: a data set of `sources.py`.
      dir: where its files are; "" is the data set's default place.
      image_size: height and width that the model sees, padding included. 0: from the data.
      channels: 1 (grey) or 3 (colour). 0: from the data.
      padding: zeros on each side, included in `image_size`.
      max_value: of pictures of more than 8 bits, the value that is white. 0: what the files state,
        or else the largest of their bits, which is refused where it would make them nearly black.
      num_bits: bits per colour; fewer than there are drops the low ones. More than 8 are read of
        grey pictures and of arrays of 16 bits.
      binarize: draw each pixel from Bernoulli(value / 255), anew every time it is read.
      horizontal_flip: mirror half of the training images, at random.
      skip_corrupt: count and leave out unreadable images instead of stopping.
      workers: processes that read and decode; 0 uses threads of this process.
      threads: reading threads (of this process, or of each worker). More than 2 pay only where
        decoding dominates: they share one interpreter lock.
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
        """Of images between their file and the model, over whose range their values lie."""
        return np.uint8 if self.num_bits <= 8 else np.uint16

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of one image as the model sees it."""
        return (self.image_size, self.image_size, self.channels)


def _require(condition, message: str):
    if not condition:
        raise DataError(f"data.{message}")
