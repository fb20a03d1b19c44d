"""Pictures that a person hands to the page."""

import base64

import numpy as np

from nvae_jax.data import images, sources
from nvae_jax.data.spec import DataSpec

LARGEST = 2**25  # bytes of an upload


def fit(content: bytes, spec: DataSpec) -> tuple[bytes, str]:
    """Brings a picture to what the model was trained on, as `--images` of the commands does.

    Args:
      content: PNG, JPEG, WebP, BMP or TIFF.
      spec: the run's `DataSpec`.

    Returns:
      a PNG of the model's size, without padding, and what was done to the picture; "": nothing.

    Raises:
      ValueError: it is no picture that can be read, or claims to be too large.
    """
    if len(content) > LARGEST:
        raise ValueError(f"the file is too large: at most {LARGEST >> 20} MiB are taken")
    where, values = "the file", (spec.max_value, spec.num_bits)
    original = images.decode(content, where, spec.channels, "", *values)
    (height, width), size = original.shape[:2], spec.image_size - 2 * spec.padding
    fitted = sources.fitted(original[None], spec)[0]
    cropped = "cropped to a square and " if height != width else ""
    note = f"{width}×{height}, {cropped}resized to {size}×{size}"
    return images.encode(fitted), "" if (height, width) == (size, size) else note


def read(png: bytes, spec: DataSpec) -> np.ndarray:
    """A picture that `fit` made, as (1, H, W, C) in [0, 1].

    Raises:
      ValueError: it is no PNG.
    """
    white = 65535 if spec.num_bits > 8 else 0  # over the whole range of its dtype
    image = images.decode(png, "the image", spec.channels, ".png", white, spec.num_bits)
    return image[None].astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def to_text(content: bytes) -> str:
    """Bytes as JSON can hold them, in base64."""
    return base64.b64encode(content).decode()
