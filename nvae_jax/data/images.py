"""Decodes, encodes and resizes single images, and defines the interface of image collections."""

from __future__ import annotations

import io
import pathlib
import warnings
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nvae_jax import files
from nvae_jax.data.depth import to_8_bit, to_16_bit
from nvae_jax.data.limits import MAX_PIXELS
from nvae_jax.data.spec import CorruptError, DataError

# The only decoders of Pillow that are used, because files can come from anywhere.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_READ = "a PNG, JPEG, WebP, BMP or TIFF image"
# {format: suffixes of its files}
_SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # A JPEG followed by a second image; cameras write these.
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
SUFFIXES = tuple(sorted({suffix for names in _SUFFIXES.values() for suffix in names}))
# (left, top, right, bottom); right and bottom are exclusive.
Box = tuple[int, int, int, int]

_LARGEST_FILE = 2**30  # bytes
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# Pillow warns of unusual tags and of sizes above its own limit, which this module handles itself.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Images(Protocol):
    """Random access to the images (H, W, C) of one split. An array (N, H, W, C) is an example.

    Images are uint8, or for models of more than 8 bits uint16, over the full range. `shape` is
    (N, H, W, C). Reading an unreadable image raises CorruptError, which names file and record.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


def probe(images: Images) -> tuple[int, int, int]:
    """The shape (H, W, C) of the first readable image.

    Raises:
      CorruptError: if none of the first ten images can be read.
    """
    faults = []
    for index in range(min(len(images), 10)):
        try:
            return images[index].shape
        except CorruptError as error:
            faults.append(error)
    raise faults[0]


def read_file(
    path: pathlib.Path, channels: int = 0, max_value: int = 0, num_bits: int = 8
) -> np.ndarray:
    """Reads and decodes an image file, whose suffix must fit its content; see `decode`."""
    try:
        with files.open_regular(path) as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise CorruptError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _LARGEST_FILE:
        raise CorruptError(f"{path}: more than {_LARGEST_FILE} bytes are refused")
    return decode(content, str(path), channels, path.suffix.lower(), max_value, num_bits)


def read_header(path: pathlib.Path) -> tuple[int, int, int]:
    """Reads the shape (H, W, C) of an image file from its header only. Raises CorruptError."""
    try:
        with files.open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
            return image.height, image.width, 1 if _is_grey(image) else 3
    except Exception as error:  # Decoders raise almost anything on damaged files.
        raise _fault(error, str(path)) from error


def decode(
    content: bytes,
    where: str,
    channels: int = 0,
    suffix: str = "",
    max_value: int = 0,
    num_bits: int = 8,
) -> np.ndarray:
    """Decodes a PNG, JPEG, WebP, BMP or TIFF image to (H, W, C).

    It is rotated according to its EXIF orientation, and transparent pixels become white.

    Args:
      content: the encoded image.
      where: the file, or file and record, for error messages.
      channels: 1 or 3 converts to grey or colour; 0 leaves the image as it is.
      suffix: suffix of the file name, which must fit the content; "" is not checked.
      max_value: for more than 8 bits, the value of white; 0: see `depth.to_8_bit`.
      num_bits: up to 8 return uint8 in [0, 255], more return uint16 in [0, 65535].

    Raises:
      CorruptError: if the image is damaged, too large, or not of the type of its suffix.
      DataError: if its values do not fit `max_value`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_claims(image, where, suffix)
            ImageOps.exif_transpose(image, in_place=True)
            if num_bits > 8:
                return _check_grey(to_16_bit(image, content, where, max_value, num_bits), channels)
            return _to_array(to_8_bit(image, content, where, max_value), channels)
    except DataError:
        raise
    except Exception as error:  # Decoders raise almost anything on damaged files.
        raise _fault(error, where) from error


def convert(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts uint8 (H, W, C) to grey (1) or colour (3); 0 leaves it unchanged."""
    if channels in (0, image.shape[-1]):
        return image
    converted = np.asarray(_to_pil(image).convert("L" if channels == 1 else "RGB"))
    return converted.reshape(*image.shape[:2], channels)


def encode(image: np.ndarray) -> bytes:
    """Encodes an image, uint8 (H, W, 1 or 3) or uint16 (H, W, 1), as PNG."""
    buffer = io.BytesIO()
    _to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def is_encoded(content: bytes) -> bool:
    """Whether bytes begin like a PNG, JPEG or WebP. Raw pixels can look like other formats."""
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return content.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or is_webp


def fit(image: np.ndarray, size: int, box: Box | None = None) -> np.ndarray:
    """Crops an image (H, W, C) and resizes it to (size, size, C), bilinearly with antialiasing.

    `box` is the crop (left, top, right, bottom); by default the largest square in the centre.
    """
    left, top, right, bottom = box or _centre(*image.shape[:2])
    image = image[top:bottom, left:right]
    if image.shape[:2] == (size, size):
        return image
    if image.dtype == np.uint16:  # Pillow does not support 16-bit colours.
        return np.concatenate([_resized(c, size) for c in np.split(image, image.shape[-1], -1)], -1)
    return _resized(image, size)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    resized = _to_pil(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(size, size, -1)


def _check_grey(image: np.ndarray, channels: int) -> np.ndarray:
    if channels == 3:
        raise DataError("data.channels=3: 16-bit grey images cannot be converted to colour")
    return image


def _check_claims(image: Image.Image, where: str, suffix: str):
    if image.width * image.height > MAX_PIXELS:
        raise CorruptError(
            f"{where}: claims {image.width}x{image.height} pixels, but at most {MAX_PIXELS} "
            "are allowed"
        )
    if suffix and suffix not in _SUFFIXES[str(image.format)]:
        raise CorruptError(f"{where}: is a {image.format} file, which its suffix does not fit")


def _fault(error: Exception, where: str) -> CorruptError:
    if isinstance(error, UnidentifiedImageError):
        return CorruptError(f"{where}: not {_READ}")
    if isinstance(error, _BOMBS):
        return CorruptError(f"{where}: claims more than {MAX_PIXELS} pixels, which is not allowed")
    if isinstance(error, OSError) and error.strerror:
        return CorruptError(f"{where}: cannot be read ({error.strerror})")
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return CorruptError(f"{where}: damaged image ({reason})")


def _to_array(image: Image.Image, channels: int) -> np.ndarray:
    mode = {1: "L", 3: "RGB"}.get(channels) or ("L" if _is_grey(image) else "RGB")
    array = np.asarray(_without_alpha(image).convert(mode))
    return array.reshape(*array.shape[:2], -1)


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F"))


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
