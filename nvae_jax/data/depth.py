"""Converts values of more than 8 bits to the range that all readers return.

That range is [0, 255] as uint8, or [0, 65535] as uint16 for models of more than 8 bits. The value
of white, the largest value that a pixel can have, is often less than what the bits of a file allow
and has to be found out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from nvae_jax.data.spec import DataError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_MAX = 258, 262, 341  # Tags of TIFF.
_KEY = "--config.data.max_value"
WHITE_KEY = "max_value"  # The text in a PNG, and the array in an .npz, that records white.


def to_8_bit(image: Image.Image, content: bytes, where: str, max_value: int) -> Image.Image:
    """Converts an image opened by Pillow to values of 8 bits.

    Grey values are scaled from [0, white] to [0, 255]. White is, in this order: the value that this
    package recorded in the file; `max_value` unless it is 0; the value stated by the file; the
    largest value that its bits allow. For colours, Pillow reads the high byte.

    Args:
      image: the image opened from `content`.
      content: the content of the file.
      where: name of the file for error messages.
      max_value: the user's value of white, or 0.

    Raises:
      DataError: if values are not integers or exceed white, or if nothing states the value of white
        and all values are so low that the scaled image would be nearly black. This is not a fault
        of a single image, so `skip_corrupt` does not skip it.
    """
    if image.mode.startswith("F"):
        raise DataError(f"{where}: holds floating-point values; only 8 and 16 bits are supported")
    bits = _bits(image, content)
    if image.mode.startswith("I"):
        return Image.fromarray(_grey(image, bits, content, where, max_value, num_bits=8))
    if bits > 8:
        _check_colours(image, where, max_value)
    return image


def to_16_bit(
    image: Image.Image, content: bytes, where: str, max_value: int, num_bits: int
) -> np.ndarray:
    """Converts a grey image to uint16 (H, W, 1), scaled from [0, white] to [0, 65535].

    If nothing else is known about white, it is assumed to be 2**num_bits - 1. In that case the
    highest `num_bits` bits of the result are exactly the values in the file.

    Args:
      image: the image opened from `content`.
      content: the content of the file.
      where: name of the file for error messages.
      max_value: as for `to_8_bit`.
      num_bits: from 9 to 16.

    Raises:
      DataError: if the image has 8 bits or colours, or values exceed white.
    """
    if not image.mode.startswith("I"):
        if _bits(image, content) > 8:
            raise DataError(
                f"{where}: image files of 16-bit colours are read with 8 bits, but data.num_bits="
                f"{num_bits} asks for more: save them as uint16 arrays (data.name=arrays)"
            )
        raise DataError(
            f"{where}: has 8 bits per value, but data.num_bits={num_bits} asks for more"
        )
    return _grey(image, _bits(image, content), content, where, max_value, num_bits)[..., None]


def scale(values: np.ndarray, white: int, num_bits: int) -> np.ndarray:
    """Scales integers from [0, white] to uint8 in [0, 255], or for more than 8 bits to uint16 in
    [0, 65535], and rounds."""
    dtype = np.uint8 if num_bits <= 8 else np.uint16
    largest = np.iinfo(dtype).max
    if white == largest:
        return values.astype(dtype)
    return ((values.astype(np.int64) * largest + white // 2) // white).astype(dtype)


def find_white(
    values: np.ndarray,
    where: object,
    *,
    bits: int,
    max_value: int,
    num_bits: int,
    recorded: int = 0,
    stated: int = 0,
) -> int:
    """Finds the value of white.

    Args:
      values: the values of an image.
      where: name of the file for error messages.
      bits: number of bits of a value in the file.
      max_value: the user's value of white, or 0.
      num_bits: number of bits of the model; more than 8 are assumed for the file, too.
      recorded: the value that this package recorded in the file, or 0; it takes precedence over
        `max_value`.
      stated: the value that the file's own metadata state, or 0.

    Raises:
      DataError: see `to_8_bit` and `to_16_bit`.
    """
    if recorded:
        max_value, stated = 0, recorded
    largest = 2**bits - 1
    if max_value > largest:
        raise DataError(f"{where}: {_KEY}={max_value} exceeds the range of its {bits} bits")
    low, high = int(values.min()), int(values.max())
    assumed = 2**num_bits - 1 if num_bits > 8 else largest
    white = max_value or stated or assumed
    if not (max_value or stated) and num_bits <= 8 and _is_nearly_black(high, largest):
        raise DataError(
            f"{where}: holds no value above {high} of {largest} and would be nearly black: set "
            f"the value of white with {_KEY} (--max_value of prepare_data), such as "
            f"{2 ** high.bit_length() - 1}; or {largest}, if it is that dark"
        )
    if low < 0 or high > white:
        by = f"{_KEY} says" if max_value else "it states" if stated else f"{num_bits} bits are"
        advice = f": set white with {_KEY}, such as {2 ** max(high, 1).bit_length() - 1}"
        hint = "" if max_value or stated else advice
        raise DataError(f"{where}: has values from {low} to {high}, but {by} 0 to {white}{hint}")
    if num_bits > 8 and white.bit_length() < num_bits:
        raise DataError(
            f"{where}: has {white.bit_length()} bits per value (0 to {white}), but data.num_bits="
            f"{num_bits} asks for more"
        )
    return white


def _bits(image: Image.Image, content: bytes) -> int:
    if image.format == "PNG":
        return content[24]  # In its first chunk, after width and height.
    tags = getattr(image, "tag_v2", {})
    return max(tags.get(_BITS_PER_SAMPLE, (8,)))


def _grey(image, bits, content, where, max_value, num_bits):
    values = np.asarray(image).astype(np.int64)
    white = find_white(
        values,
        where,
        bits=bits,
        max_value=max_value,
        num_bits=num_bits,
        recorded=_recorded(image),
        stated=_stated(image, values, content, 2**bits - 1),
    )
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # Zero stands for white.
        values = white - values
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = white
    return scale(values, white, num_bits)


def white_of_arrays(arrays: Mapping[str, np.ndarray]) -> int:
    """The value of white that this package recorded in an .npz file, or 0."""
    recorded = arrays.get(WHITE_KEY, np.zeros(()))
    whole = recorded.shape == () and recorded.dtype.kind in "iu"
    return int(recorded) if whole and 0 < recorded < 2**16 else 0


def _recorded(image):
    """The value of white that `pictures.save_png` recorded, or 0."""
    text = str(image.info.get(WHITE_KEY, ""))
    return int(text) if text.isdecimal() and 0 < int(text) < 2**16 else 0


def _stated(image, values, content, largest):
    """The value of white that the file's own metadata state, or 0."""
    if image.format == "PNG":
        return _stated_by_png(values, content, largest)
    stated = image.tag_v2.get(_SAMPLE_MAX, 0)
    stated = stated[0] if isinstance(stated, tuple) else stated
    if 1 <= stated <= largest:
        return int(stated)
    # 12 bits are a choice of the writer; 16 and 32 are only the usual sizes of integers.
    return largest if largest.bit_length() % 8 else 0


def _stated_by_png(values, content, largest):
    """The value of white according to the chunk sBIT, the number of significant bits, or 0.

    By the standard, values are scaled to all 16 bits, so that the low bits of many images are
    zero; but many writers leave the values unscaled.
    """
    bits = next((body[0] for kind, body in _chunks(content) if kind == b"sBIT" and body), 16)
    if not 1 <= bits < 16:
        return 0
    unscaled = values.max() < 2**bits and (values & (2 ** (16 - bits) - 1)).any()
    return 2**bits - 1 if unscaled else largest


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields (type, content) of each chunk of a PNG before its pixels."""
    position, kind = 8, b""
    while position + 8 <= len(content) and kind != b"IDAT":
        length, kind = struct.unpack_from(">I4s", content, position)
        yield kind, content[position + 8 : position + 8 + length]
        position += 12 + length


def _is_nearly_black(high, largest):
    return 0 < high <= largest // 4


def _check_colours(image, where, max_value):
    largest = 2**16 - 1
    if max_value not in (0, largest):
        raise DataError(
            f"{where}: {_KEY}={max_value} is for grey images, but this has 16-bit colours"
        )
    high = int(np.asarray(image)[..., : 1 if image.mode == "LA" else 3].max())
    if not max_value and _is_nearly_black(256 * high, largest):
        raise DataError(
            f"{where}: holds no value above {256 * high + 255} of {largest} and would be nearly "
            f"black: save it with 8 bits; or set {_KEY}={largest}, if it is that dark"
        )
