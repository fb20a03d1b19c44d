"""Pictures of more than 8 bits a value, brought to 8: which of their values is white?"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

from nvae_jax.data.spec import DataError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_MAX = 258, 262, 341  # Tags of TIFF.
_KEY = "--config.data.max_value"


def to_8_bit(image: Image.Image, content: bytes, where: str, max_value: int) -> Image.Image:
    """A picture as Pillow opens it, with values of 8 bits.

    Grey values are scaled from [0, white] to [0, 255]. White is `max_value`, or where that is 0
    what the file states, or else the largest value of its bits. Of colours, Pillow reads the high
    byte.

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
        return _grey(image, bits, content, where, max_value)
    if bits > 8:
        _check_colours(image, where, max_value)
    return image


def _bits(image: Image.Image, content: bytes) -> int:
    if image.format == "PNG":
        return content[24]  # Of its first chunk, behind width and height.
    tags = getattr(image, "tag_v2", {})
    return max(tags.get(_BITS_PER_SAMPLE, (8,)))


def _grey(image, bits, content, where, max_value):
    values = np.asarray(image).astype(np.int64)
    largest = 2**bits - 1
    if max_value > largest:
        raise DataError(f"{where}: {_KEY}={max_value} is more than its {bits} bits can say")
    white = max_value or _stated(image, values, content, largest)
    low, high = int(values.min()), int(values.max())
    if not white:
        white = largest
        if _is_nearly_black(high, largest):
            raise DataError(
                f"{where}: holds no value above {high} of {largest} and would be nearly black: say "
                f"which is white with {_KEY} (--max_value of prepare_data), such as "
                f"{2 ** high.bit_length() - 1}; or {largest}, if it is that dark"
            )
    if low < 0 or high > white:
        by = f"{_KEY} says" if max_value else "it states"
        raise DataError(f"{where}: has values from {low} to {high}, where {by} 0 to {white}")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # White is zero.
        values = white - values
    if "transparency" in image.info:
        values[values == image.info["transparency"]] = white
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


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
