"""What happens to one image (H, W, C) between its file and the model, which begins as integers:
uint8, or for models of more than 8 bits uint16, in either case over the whole range."""

from __future__ import annotations

import numpy as np

from nvae_jax.data.spec import DataError, DataSpec

# Training and evaluation draw from different streams, so that a training image that is also
# evaluated (say, with --split=train) is not binarised the same way twice.
TRAIN_STREAM, EVAL_STREAM = 0, 1


def example_rng(seed: int, stream: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers for one reading of one example, whoever reads it and in whatever order."""
    return np.random.default_rng((seed, stream, epoch, index))


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors (H, W, C) left to right with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def binarize(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws each pixel of uint8 (H, W, C) from Bernoulli(value / 255), as float32 0 or 1."""
    probabilities = image.astype(np.float32) / np.float32(255)
    return (rng.random(image.shape, dtype=np.float32) < probabilities).astype(np.float32)


def quantize(image: np.ndarray, num_bits: int) -> np.ndarray:
    """Keeps the highest `num_bits` of uint8 or uint16 and scales them to float32 [0, 1]."""
    dropped = 8 * image.dtype.itemsize - num_bits
    return (image >> dropped).astype(np.float32) / np.float32(2**num_bits - 1)


def pad(image: np.ndarray, padding: int) -> np.ndarray:
    """Adds `padding` zeros on each side of (H, W, C) in H and W."""
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, channels), image.dtype)
    padded[padding:-padding, padding:-padding] = image  # np.pad takes ten times as long.
    return padded


def to_model(
    image: np.ndarray, spec: DataSpec, rng: np.random.Generator, train: bool
) -> np.ndarray:
    """One uint8 image (h, w, C) as the model takes it: float32 (H, W, C) in [0, 1]."""
    if train and spec.horizontal_flip:
        image = flip(image, rng)
    if spec.binarize:
        image = binarize(image, rng)
    else:
        image = quantize(image, spec.num_bits)
    return pad(image, spec.padding) if spec.padding else np.ascontiguousarray(image)


def check_shape(shape: tuple[int, ...], spec: DataSpec) -> None:
    """Raises DataError unless images of `shape` (h, w, c) are, once padded, what `spec` says."""
    height, width, channels = shape
    padded = (height + 2 * spec.padding, width + 2 * spec.padding, channels)
    if padded == spec.image_shape:
        return
    raise DataError(
        f"data set {spec.name!r} has images of {height}x{width} with {channels} channel(s), with "
        f"padding={spec.padding} that is {padded[0]}x{padded[1]}; the config says "
        f"image_size={spec.image_size}, channels={spec.channels}"
    )
