"""One image: how it is decoded, encoded and brought to size; and what a collection of them is."""

from __future__ import annotations

import io
import pathlib
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nvae_jax.data.spec import CorruptError, DataError

# A picture of 8192x8192. Small files can claim far more and take the memory of the machine.
MAX_PIXELS = 2**26

# The only decoders that are let near a file, and the names that each may go by.
_SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # A JPEG with a second picture behind it; cameras write these.
    "WEBP": (".webp",),
}
SUFFIXES = tuple(sorted({suffix for names in _SUFFIXES.values() for suffix in names}))
# (left, top, right, bottom), the last two outside of it.
Box = tuple[int, int, int, int]

_GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B"}


class Images(Protocol):
    """Random access to uint8 images (H, W, C) of one split; an array (N, H, W, C) is one.

    `shape` is (N, H, W, C). Reading raises CorruptError, naming file and record, for an image
    that cannot be read.
    """

    @property
    def shape(self) -> tuple[int, int, int, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> np.ndarray: ...


def probe(images: Images) -> tuple[int, int, int]:
    """(H, W, C) of the first image that can be read; raises its CorruptError if none of ten can."""
    fault = None
    for index in range(min(len(images), 10)):
        try:
            return images[index].shape
        except CorruptError as error:
            fault = fault or error
    raise fault


def read_file(path: pathlib.Path, channels: int = 0) -> np.ndarray:
    """Decodes an image file to uint8 (H, W, C), refusing one that is not what its name says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptError(f"{path}: cannot be read ({error.strerror or error})") from error
    return decode(content, str(path), channels, path.suffix.lower())


def read_header(path: pathlib.Path) -> tuple[int, int, int]:
    """(H, W, C) of an image file, from its header alone. Raises CorruptError as decoding does."""
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            return image.height, image.width, 1 if image.mode in _GREY_MODES else 3
    except Exception as error:  # As below.
        raise CorruptError(f"{path}: not a PNG, JPEG or WebP image") from error


def decode(content: bytes, where: str, channels: int = 0, suffix: str = "") -> np.ndarray:
    """Decodes a PNG, JPEG or WebP to uint8 (H, W, C).

    Args:
      content: the encoded image.
      where: the file, or file and record, for errors.
      channels: 1 or 3 converts to grey or colour; 0 takes the image as it is.
      suffix: the type that the file claims; "" makes no claim.

    Raises:
      CorruptError: the image is damaged, too large, of another type than claimed, or of none.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as image:
            _check_claims(image, where, suffix)
            return _to_array(image, channels)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise CorruptError(f"{where}: not a PNG, JPEG or WebP image") from error
    except Exception as error:  # Decoders raise nearly anything on damaged bytes.
        raise CorruptError(f"{where}: damaged image ({error})") from error


def convert(image: np.ndarray, channels: int) -> np.ndarray:
    """Makes uint8 (H, W, C) grey (1) or coloured (3); 0 leaves it as it is."""
    if channels in (0, image.shape[-1]):
        return image
    converted = np.asarray(_to_pil(image).convert("L" if channels == 1 else "RGB"))
    return converted.reshape(*image.shape[:2], channels)


def encode(image: np.ndarray) -> bytes:
    """Encodes uint8 (H, W, C), C 1 or 3, as PNG."""
    buffer = io.BytesIO()
    _to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def is_encoded(content: bytes) -> bool:
    """Whether bytes begin as a PNG, JPEG or WebP does."""
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return content.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or is_webp


def fit(image: np.ndarray, size: int, box: Box | None = None) -> np.ndarray:
    """Crops uint8 (H, W, C) and resizes it to (size, size, C), bilinear with antialiasing.

    `box` is (left, top, right, bottom); without one the largest square in the centre is taken.
    """
    left, top, right, bottom = box or _centre(*image.shape[:2])
    image = image[top:bottom, left:right]
    if image.shape[:2] == (size, size):
        return image
    resized = _to_pil(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(size, size, -1)


def _check_claims(image: Image.Image, where: str, suffix: str):
    if image.width * image.height > MAX_PIXELS:
        raise CorruptError(
            f"{where}: claims {image.width}x{image.height} pixels, more than {MAX_PIXELS} "
            "are refused"
        )
    if suffix and suffix not in _SUFFIXES[image.format]:
        raise CorruptError(f"{where}: is a {image.format} file, not what its name says")


def _to_array(image: Image.Image, channels: int) -> np.ndarray:
    mode = {1: "L", 3: "RGB"}.get(channels) or ("L" if image.mode in _GREY_MODES else "RGB")
    image = _without_alpha(_to_8_bit(ImageOps.exif_transpose(image)))
    array = np.asarray(image.convert(mode))
    return array.reshape(*array.shape[:2], -1)


def _to_8_bit(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def _without_alpha(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _centre(height: int, width: int) -> tuple[int, int, int, int]:
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
