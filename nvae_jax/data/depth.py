"""Values of more than 8 bits: which of them is white, and how they come to the range that all
readers give: [0, 255] as uint8, or for models of more than 8 bits [0, 65535] as uint16."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

from nvae_jax.data.spec import DataError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_MAX = 258, 262, 341  # Tags of TIFF.
_KEY = "--config.data.max_value"
NOTE = "max_value"  # The text in a PNG, and the array beside images, that says what is white.


def to_8_bit(image: Image.Image, content: bytes, where: str, max_value: int) -> Image.Image:
    """A picture as Pillow opens it, with values of 8 bits.

    Grey values are scaled from [0, white] to [0, 255]. White is what this program has noted in the
    file, or `max_value`, or where that is 0 what the file states, or else the largest value of its
    bits. Of colours, Pillow reads the high byte.

    Args:
      image: opened from `content`.
      where: the file, for errors.

    Raises:
      DataError: values of another kind, above white, or, where nothing states what white is, so low
        that scaling would leave a picture nearly black. No fault of one picture, so that these are
        not skipped with the unreadable ones.
    """
    if image.mode.startswith("F"):
        raise DataError(f"{where}: holds floating-point values, where 8 or 16 bits are read")
    bits = _bits(image, content)
    if image.mode.startswith("I"):
        return Image.fromarray(_grey(image, bits, content, where, max_value, num_bits=8))
    if bits > 8:
        _check_colours(image, where, max_value)
    return image


def to_16_bit(
    image: Image.Image, content: bytes, where: str, max_value: int, num_bits: int
) -> np.ndarray:
    """A grey picture as uint16 (H, W, 1), scaled from [0, white] to [0, 65535].

    The highest `num_bits` of these are exactly the picture's values where white is the largest of
    so many bits. That is also what is taken for white where nothing says otherwise.

    Args:
      image: opened from `content`.
      where: the file, for errors.
      max_value: as for `to_8_bit`.
      num_bits: from 9 to 16.

    Raises:
      DataError: a picture of 8 bits or of colours, or values above white. No fault of one picture.
    """
    if not image.mode.startswith("I"):
        if _bits(image, content) > 8:
            raise DataError(
                f"{where}: colours of 16 bits are read with 8 from pictures, where data.num_bits="
                f"{num_bits} asks for more: save them as uint16 arrays (data.name=arrays)"
            )
        raise DataError(f"{where}: has 8 bits a value, and data.num_bits={num_bits} asks for more")
    return _grey(image, _bits(image, content), content, where, max_value, num_bits)[..., None]


def scale(values: np.ndarray, white: int, num_bits: int) -> np.ndarray:
    """Integers of [0, white] as uint8 of [0, 255], or for more than 8 bits as uint16 of [0, 65535],
    rounded."""
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
    noted: int = 0,
    stated: int = 0,
) -> int:
    """The value that is white, from what is said of it, or else from the number of bits.

    Args:
      values: of the image.
      where: the file, for errors.
      bits: that a value takes in the file.
      max_value: what the user says, or 0.
      num_bits: of the model; more than 8 are taken for the file's.
      noted: what this program has written in the file, or 0; it goes before what the user says.
      stated: what the file says otherwise, or 0.

    Raises:
      DataError: see `to_8_bit` and `to_16_bit`.
    """
    if noted:
        max_value, stated = 0, noted
    largest = 2**bits - 1
    if max_value > largest:
        raise DataError(f"{where}: {_KEY}={max_value} is more than its {bits} bits can say")
    low, high = int(values.min()), int(values.max())
    assumed = 2**num_bits - 1 if num_bits > 8 else largest
    white = max_value or stated or assumed
    if not (max_value or stated) and num_bits <= 8 and _is_nearly_black(high, largest):
        raise DataError(
            f"{where}: holds no value above {high} of {largest} and would be nearly black: say "
            f"which is white with {_KEY} (--max_value of prepare_data), such as "
            f"{2 ** high.bit_length() - 1}; or {largest}, if it is that dark"
        )
    if low < 0 or high > white:
        by = f"{_KEY} says" if max_value else "it states" if stated else f"{num_bits} bits are"
        named = f": say which is white with {_KEY}, such as {2 ** max(high, 1).bit_length() - 1}"
        hint = "" if max_value or stated else named
        raise DataError(f"{where}: has values from {low} to {high}, where {by} 0 to {white}{hint}")
    if num_bits > 8 and white.bit_length() < num_bits:
        raise DataError(
            f"{where}: has {white.bit_length()} bits a value (0 to {white}), where data.num_bits="
            f"{num_bits} asks for more"
        )
    return white


def _bits(image: Image.Image, content: bytes) -> int:
    if image.format == "PNG":
        return content[24]  # Of its first chunk, behind width and height.
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
        noted=_noted(image),
        stated=_stated(image, values, content, 2**bits - 1),
    )
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # White is zero.
        values = white - values
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = white
    return scale(values, white, num_bits)


def white_of_arrays(arrays: Mapping[str, np.ndarray]) -> int:
    """White as the files of arrays that this program writes note it beside the images, or 0."""
    noted = arrays.get(NOTE, np.zeros(()))
    whole = noted.shape == () and noted.dtype.kind in "iu"
    return int(noted) if whole and 0 < noted < 2**16 else 0


def _noted(image):
    """White as `pictures.save_png` notes it, or 0."""
    text = str(image.info.get(NOTE, ""))
    return int(text) if text.isdecimal() and 0 < int(text) < 2**16 else 0


def _stated(image, values, content, largest):
    """White as the file states it, or 0."""
    if image.format == "PNG":
        return _stated_by_png(values, content, largest)
    stated = image.tag_v2.get(_SAMPLE_MAX, 0)
    stated = stated[0] if isinstance(stated, tuple) else stated
    if 1 <= stated <= largest:
        return int(stated)
    # 12 bits say something; 16 or 32 are how anything is kept.
    return largest if largest.bit_length() % 8 else 0


def _stated_by_png(values, content, largest):
    """From the chunk sBIT, the number of significant bits. Its values should be scaled to all 16
    bits, which leaves the low ones empty in dark pictures; many writers leave them as they are."""
    bits = next((body[0] for kind, body in _chunks(content) if kind == b"sBIT" and body), 16)
    if not 1 <= bits < 16:
        return 0
    unscaled = values.max() < 2**bits and (values & (2 ** (16 - bits) - 1)).any()
    return 2**bits - 1 if unscaled else largest


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Those of a PNG ahead of its pixels: kind and body."""
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
        raise DataError(f"{where}: {_KEY}={max_value} is for grey, and this has colours of 16 bits")
    high = int(np.asarray(image)[..., : 1 if image.mode == "LA" else 3].max())
    if not max_value and _is_nearly_black(256 * high, largest):
        raise DataError(
            f"{where}: holds no value above {256 * high + 255} of {largest} and would be nearly "
            f"black: save it with 8 bits; or set {_KEY}={largest}, if it is that dark"
        )
