"""One image: how it is decoded, encoded and brought to size; and what a collection of them is."""

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

# The only decoders that are let near a file.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_READ = "a PNG, JPEG, WebP, BMP or TIFF image"
# The names that each may go by.
_SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),  # A JPEG with a second picture behind it; cameras write these.
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}
SUFFIXES = tuple(sorted({suffix for names in _SUFFIXES.values() for suffix in names}))
# (left, top, right, bottom), the last two outside of it.
Box = tuple[int, int, int, int]

_LARGEST_FILE = 2**30  # bytes
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# Pillow warns of odd tags and of sizes above its own limit; here they are read or refused.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Images(Protocol):
    """Random access to images (H, W, C) of one split; an array (N, H, W, C) is one. They are uint8,
    or for models of more than 8 bits uint16 over the whole range.

    `shape` is (N, H, W, C). Reading raises CorruptError, naming file and record, for an image
    that cannot be read.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


def probe(images: Images) -> tuple[int, int, int]:
    """(H, W, C) of the first image that can be read; raises its CorruptError if none of ten can."""
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
    """Decodes an image file, refusing one that is not what its name says; see `decode`."""
    try:
        with files.open_regular(path) as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise CorruptError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _LARGEST_FILE:
        raise CorruptError(f"{path}: more than {_LARGEST_FILE} bytes are refused")
    return decode(content, str(path), channels, path.suffix.lower(), max_value, num_bits)


def read_header(path: pathlib.Path) -> tuple[int, int, int]:
    """(H, W, C) of an image file, from its header alone. Raises CorruptError as decoding does."""
    try:
        with files.open_regular(path) as file, Image.open(file, formats=_FORMATS) as image:
            return image.height, image.width, 1 if _is_grey(image) else 3
    except Exception as error:  # As below.
        raise _fault(error, str(path)) from error


def decode(
    content: bytes,
    where: str,
    channels: int = 0,
    suffix: str = "",
    max_value: int = 0,
    num_bits: int = 8,
) -> np.ndarray:
    """Decodes a PNG, JPEG, WebP, BMP or TIFF to (H, W, C): turned as cameras note it, and white
    where it is transparent.

    Args:
      content: the encoded image.
      where: the file, or file and record, for errors.
      channels: 1 or 3 converts to grey or colour; 0 takes the image as it is.
      suffix: the type that the file claims; "" makes no claim.
      max_value: of more than 8 bits, the value that is white; 0: see `depth.to_8_bit`.
      num_bits: that are wanted. Up to 8 give uint8 of [0, 255], more uint16 of [0, 65535].

    Raises:
      CorruptError: the image is damaged, too large, of another type than claimed, or of none.
      DataError: its values do not fit `max_value`.
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
    except Exception as error:  # Decoders raise nearly anything on damaged bytes.
        raise _fault(error, where) from error


def convert(image: np.ndarray, channels: int) -> np.ndarray:
    """Makes uint8 (H, W, C) grey (1) or coloured (3); 0 leaves it as it is."""
    if channels in (0, image.shape[-1]):
        return image
    converted = np.asarray(_to_pil(image).convert("L" if channels == 1 else "RGB"))
    return converted.reshape(*image.shape[:2], channels)


def encode(image: np.ndarray) -> bytes:
    """Encodes uint8 (H, W, C), C 1 or 3, or uint16 (H, W, 1) as PNG."""
    buffer = io.BytesIO()
    _to_pil(image).save(buffer, "PNG")
    return buffer.getvalue()


def is_encoded(content: bytes) -> bool:
    """Whether bytes begin as a PNG, JPEG or WebP does. Pixels may begin as other formats do."""
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return content.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or is_webp


def fit(image: np.ndarray, size: int, box: Box | None = None) -> np.ndarray:
    """Crops (H, W, C) and resizes it to (size, size, C), bilinear with antialiasing.

    `box` is (left, top, right, bottom); without one the largest square in the centre is taken.
    """
    left, top, right, bottom = box or _centre(*image.shape[:2])
    image = image[top:bottom, left:right]
    if image.shape[:2] == (size, size):
        return image
    if image.dtype == np.uint16:  # Pillow has no such colours.
        return np.concatenate([_resized(c, size) for c in np.split(image, image.shape[-1], -1)], -1)
    return _resized(image, size)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    resized = _to_pil(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(size, size, -1)


def _check_grey(image: np.ndarray, channels: int) -> np.ndarray:
    if channels == 3:
        raise DataError("data.channels=3: grey pictures of 16 bits are not made coloured")
    return image


def _check_claims(image: Image.Image, where: str, suffix: str):
    if image.width * image.height > MAX_PIXELS:
        raise CorruptError(
            f"{where}: claims {image.width}x{image.height} pixels, more than {MAX_PIXELS} "
            "are refused"
        )
    if suffix and suffix not in _SUFFIXES[str(image.format)]:
        raise CorruptError(f"{where}: is a {image.format} file, not what its name says")


def _fault(error: Exception, where: str) -> CorruptError:
    if isinstance(error, UnidentifiedImageError):
        return CorruptError(f"{where}: not {_READ}")
    if isinstance(error, _BOMBS):
        return CorruptError(f"{where}: claims more than {MAX_PIXELS} pixels, which are refused")
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
