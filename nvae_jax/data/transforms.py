"""Transforms single images (H, W, C) from the readers' integers to the model's input.

The integers are uint8, or for models of more than 8 bits uint16, over the full range.
"""

from __future__ import annotations

import numpy as np

from nvae_jax.data.spec import DataError, DataSpec

# Training and evaluation use different random streams, so that a training image that is also
# evaluated (such as with --split=train) is not binarised in the same way.
TRAIN_STREAM, EVAL_STREAM = 0, 1


def example_rng(seed: int, stream: int, epoch: int, index: int) -> np.random.Generator:
    """The random generator of one example in one epoch, independent of reading order and hosts."""
    return np.random.default_rng((seed, stream, epoch, index))


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors an image (H, W, C) left to right with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def binarize(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws each pixel of uint8 (H, W, C) from Bernoulli(value / 255), as float32 0 or 1."""
    probabilities = image.astype(np.float32) / np.float32(255)
    return (rng.random(image.shape, dtype=np.float32) < probabilities).astype(np.float32)


def quantize(image: np.ndarray, num_bits: int) -> np.ndarray:
    """Keeps the highest `num_bits` bits of uint8 or uint16 and scales them to float32 in [0, 1]."""
    dropped = 8 * image.dtype.itemsize - num_bits
    return (image >> dropped).astype(np.float32) / np.float32(2**num_bits - 1)


def pad(image: np.ndarray, padding: int) -> np.ndarray:
    """Adds `padding` zeros on each side of an image (H, W, C)."""
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, channels), image.dtype)
    padded[padding:-padding, padding:-padding] = image  # np.pad would take ten times as long
    return padded


def to_model(
    image: np.ndarray, spec: DataSpec, rng: np.random.Generator, train: bool
) -> np.ndarray:
    """Converts an image (h, w, C) to the model's input: float32 (H, W, C) in [0, 1]."""
    if train and spec.horizontal_flip:
        image = flip(image, rng)
    if spec.binarize:
        image = binarize(image, rng)
    else:
        image = quantize(image, spec.num_bits)
    return pad(image, spec.padding) if spec.padding else np.ascontiguousarray(image)


def check_shape(shape: tuple[int, ...], spec: DataSpec) -> None:
    """Raises DataError unless images of `shape` (h, w, c), padded, have the shape in `spec`."""
    height, width, channels = shape
    padded = (height + 2 * spec.padding, width + 2 * spec.padding, channels)
    if padded == spec.image_shape:
        return
    raise DataError(
        f"data set {spec.name!r} has images of {height}x{width} with {channels} channel(s), with "
        f"padding={spec.padding} that is {padded[0]}x{padded[1]}; the config says "
        f"image_size={spec.image_size}, channels={spec.channels}"
    )
