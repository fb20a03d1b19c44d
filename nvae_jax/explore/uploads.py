"""Decodes and resizes images that a user uploads to the page."""

import base64

import numpy as np

from nvae_jax.data import images, splits
from nvae_jax.data.spec import DataSpec

LARGEST = 2**25  # bytes of an upload


def fit(content: bytes, spec: DataSpec) -> tuple[bytes, str]:
    """Crops and resizes an image to the model's size, as `--images` of the commands does.

    Args:
      content: a PNG, JPEG, WebP, BMP or TIFF file.
      spec: the run's `DataSpec`.

    Returns:
      a PNG of the model's size without padding, and a note about what was changed, or "".

    Raises:
      ValueError: if it cannot be decoded or is too large.
    """
    if len(content) > LARGEST:
        raise ValueError(f"the file is too large: at most {LARGEST >> 20} MiB are allowed")
    where, values = "the file", (spec.max_value, spec.num_bits)
    original = images.decode(content, where, spec.channels, "", *values)
    (height, width), size = original.shape[:2], spec.unpadded_size
    fitted = splits.fitted(original[None], spec)[0]
    cropped = "cropped to a square and " if height != width else ""
    note = f"{width}×{height}, {cropped}resized to {size}×{size}"
    return images.encode(fitted), "" if (height, width) == (size, size) else note


def read(png: bytes, spec: DataSpec) -> np.ndarray:
    """Decodes an image from `fit` to (1, H, W, C) in [0, 1].

    Raises:
      ValueError: if it is not a PNG.
    """
    white = 65535 if spec.num_bits > 8 else 0  # `fit` writes values over the full range
    image = images.decode(png, "the image", spec.channels, ".png", white, spec.num_bits)
    return image[None].astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def to_text(content: bytes) -> str:
    """Encodes bytes in base64 for JSON."""
    return base64.b64encode(content).decode()
