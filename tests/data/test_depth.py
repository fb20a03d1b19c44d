"""Pictures of more than 8 bits: scaled by what is known of them, or refused; never emptied."""

import struct
import zlib

import numpy as np
import pytest

from nvae_jax.data import images
from nvae_jax.data.spec import CorruptError, DataError

VALUES_12 = np.arange(4096, dtype=np.uint16).reshape(64, 64, 1)
SCALED_12 = np.round(VALUES_12 * (255 / 4095)).astype(np.uint8)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_significant_bits(content, bits):
    """A grey PNG with a chunk sBIT, which comes behind its header."""
    return content[:33] + chunk(b"sBIT", bytes([bits])) + content[33:]


def colours(values):
    """uint16 (H, W, 3) as a PNG, which Pillow does not write."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_all_of_sixteen_bits_are_scaled_to_eight(kind, encode):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16, 1)
    expected = np.arange(256).reshape(16, 16, 1)
    np.testing.assert_array_equal(images.decode(encode(values, kind), "file"), expected)
    read = images.decode(encode(values, kind), "file", channels=3)
    np.testing.assert_array_equal(read, np.repeat(expected, 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_twelve_bits_need_the_key(kind, encode):
    content = encode(VALUES_12, kind)
    with pytest.raises(DataError, match="scan: .*nearly black.*data.max_value.*4095") as caught:
        images.decode(content, "scan")
    # Not to be left out with the unreadable ones: it would be all of them.
    assert not isinstance(caught.value, CorruptError)
    np.testing.assert_array_equal(images.decode(content, "scan", max_value=4095), SCALED_12)
    assert images.decode(content, "scan", max_value=65535).max() == 16
    with pytest.raises(DataError, match="scan: has values from 0 to 4095, where .*max_value.*1023"):
        images.decode(content, "scan", max_value=1023)


def test_ranges_that_the_bits_cannot_have(encode):
    with pytest.raises(DataError, match="max_value=99999 is more than its 16 bits can say"):
        images.decode(encode(VALUES_12), "scan", max_value=99999)
    with pytest.raises(DataError, match="nearly black"):
        images.decode(encode(VALUES_12, "TIFF", tiffinfo={341: 1e9}), "scan")


def test_a_black_picture_is_black(encode):
    assert not images.decode(encode(np.zeros((2, 2, 1), np.uint16)), "night").any()


def test_stated_ranges_are_followed(encode):
    for content in (
        with_significant_bits(encode(VALUES_12), 12),  # as they are
        with_significant_bits(
            encode(VALUES_12 * 16 + VALUES_12 // 256), 12
        ),  # scaled, as PNG wants
        encode(VALUES_12, "TIFF", tiffinfo={341: 4095}),  # SMaxSampleValue
    ):
        np.testing.assert_array_equal(images.decode(content, "file"), SCALED_12)
    dark = with_significant_bits(encode(VALUES_12[:16] * 16), 12)
    assert images.decode(dark, "file").max() == 64  # a quarter of the way to white


def test_tiffs_with_black_and_white_exchanged(encode):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16, 1)
    read = images.decode(encode(values, "TIFF", tiffinfo={262: 0}), "file")
    np.testing.assert_array_equal(read, 255 - np.arange(256).reshape(16, 16, 1))


def test_colours_of_sixteen_bits():
    values = np.repeat(VALUES_12, 3, -1)
    np.testing.assert_array_equal(images.decode(colours(values * 16), "file"), values // 16)
    with pytest.raises(DataError, match="file: .*nearly black: save it with 8 bits"):
        images.decode(colours(values), "file")
    assert images.decode(colours(values), "file", max_value=65535).max() == 15
    with pytest.raises(DataError, match="is for grey"):
        images.decode(colours(values), "file", max_value=4095)


@pytest.mark.parametrize(("dtype", "message"), [("f4", "floating-point"), ("i4", "nearly black")])
def test_other_kinds_of_values_are_refused(dtype, message, encode):
    with pytest.raises(DataError, match=f"file: .*{message}"):
        images.decode(encode(VALUES_12.astype(dtype), "TIFF"), "file")
