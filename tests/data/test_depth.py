"""Pictures of more than 8 bits are scaled by their known range or refused, but never become black.
Models of more than 8 bits get all bits."""

import struct
import zlib

import numpy as np
import pytest

from nvae_jax.data import images, pipeline, splits, transforms
from nvae_jax.data.spec import CorruptError, DataError, DataSpec

VALUES_12 = np.arange(4096, dtype=np.uint16).reshape(64, 64, 1)
SCALED_12 = np.round(VALUES_12 * (255 / 4095)).astype(np.uint8)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_significant_bits(content, bits):
    """A grey PNG with the chunk sBIT after its header."""
    return content[:33] + chunk(b"sBIT", bytes([bits])) + content[33:]


def colours(values):
    """Encodes uint16 (H, W, 3) as a PNG, which Pillow cannot."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_full_range_of_sixteen_bits_is_scaled_to_eight(kind, encode):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16, 1)
    expected = np.arange(256).reshape(16, 16, 1)
    np.testing.assert_array_equal(images.decode(encode(values, kind), "file"), expected)
    read = images.decode(encode(values, kind), "file", channels=3)
    np.testing.assert_array_equal(read, np.repeat(expected, 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_twelve_bits_in_sixteen_need_a_value_for_white(kind, encode):
    content = encode(VALUES_12, kind)
    with pytest.raises(DataError, match="scan: .*nearly black.*data.max_value.*4095") as caught:
        images.decode(content, "scan")
    # No CorruptError: with skip_corrupt, all pictures would be skipped.
    assert not isinstance(caught.value, CorruptError)
    np.testing.assert_array_equal(images.decode(content, "scan", max_value=4095), SCALED_12)
    assert images.decode(content, "scan", max_value=65535).max() == 16
    with pytest.raises(DataError, match="scan: has values from 0 to 4095, but .*max_value.*1023"):
        images.decode(content, "scan", max_value=1023)


def test_a_value_for_white_that_exceeds_the_bits_is_refused(encode):
    with pytest.raises(DataError, match="max_value=99999 exceeds the range of its 16 bits"):
        images.decode(encode(VALUES_12), "scan", max_value=99999)
    with pytest.raises(DataError, match="nearly black"):
        images.decode(encode(VALUES_12, "TIFF", tiffinfo={341: 1e9}), "scan")


def test_a_picture_without_any_light_is_allowed(encode):
    assert not images.decode(encode(np.zeros((2, 2, 1), np.uint16)), "night").any()


def test_a_range_that_the_file_states_is_used(encode):
    for content in (
        with_significant_bits(encode(VALUES_12), 12),  # values up to 4095
        with_significant_bits(
            encode(VALUES_12 * 16 + VALUES_12 // 256), 12
        ),  # scaled to 16 bits, as the standard of PNG demands
        encode(VALUES_12, "TIFF", tiffinfo={341: 4095}),  # SMaxSampleValue
    ):
        np.testing.assert_array_equal(images.decode(content, "file"), SCALED_12)
    dark = with_significant_bits(encode(VALUES_12[:16] * 16), 12)
    assert images.decode(dark, "file").max() == 64  # a quarter of the way to white


def test_tiffs_whose_zero_is_white_are_inverted(encode):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16, 1)
    read = images.decode(encode(values, "TIFF", tiffinfo={262: 0}), "file")
    np.testing.assert_array_equal(read, 255 - np.arange(256).reshape(16, 16, 1))


def test_colour_pictures_of_sixteen_bits_are_scaled_by_their_full_range_only():
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


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_pictures_of_more_than_eight_bits_are_read_exactly(kind, bits, encode):
    values = np.random.default_rng(0).integers(0, 2**bits, (16, 16, 1)).astype(np.uint16)
    for content, white in (
        (encode(values, kind), 0),  # as many bits as the model
        (encode(values, kind), 2**bits - 1),
        (encode(values << 16 - bits, kind), 2**16 - 1),  # in the highest bits
    ):
        read = images.decode(content, "scan", max_value=white, num_bits=bits)
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read >> 16 - bits, values)
        np.testing.assert_array_equal(
            np.round(transforms.quantize(read, bits).astype(np.float64) * (2**bits - 1)), values
        )


def test_pictures_that_do_not_fit_the_models_bits_are_refused(encode):
    def refused(content, **options):
        with pytest.raises(DataError) as caught:
            images.decode(content, "scan", **{"num_bits": 12, **options})
        assert not isinstance(caught.value, CorruptError)
        return str(caught.value)

    grey = np.zeros((4, 4, 1), np.uint8)
    assert "scan: has 8 bits per value, but data.num_bits=12 asks for more" in refused(encode(grey))
    assert "16-bit colours are read with 8" in refused(colours(np.repeat(VALUES_12, 3, -1)))
    assert "colours" not in refused(encode(np.repeat(grey, 3, -1)))
    message = refused(encode(VALUES_12), num_bits=10)
    assert "values from 0 to 4095, but 10 bits are 0 to 1023: set white" in message
    assert "has 12 bits per value (0 to 4095)" in refused(
        with_significant_bits(encode(VALUES_12), 12), num_bits=14
    )
    assert "data.channels=3" in refused(encode(VALUES_12), channels=3)


def test_pictures_of_sixteen_bits_are_resized_with_all_their_bits():
    ramp = np.tile(np.arange(64, dtype=np.uint16)[:, None, None] * 1000, (1, 64, 1))
    for image in (ramp, np.repeat(ramp, 3, -1)):
        small = images.fit(image, 16)
        assert small.dtype == np.uint16 and small.shape == (16, 16, image.shape[-1])
        np.testing.assert_allclose(small[4:-4, 5, 0], np.arange(4, 12) * 4000 + 1500, atol=2)


def test_a_folder_of_ten_bit_pictures_reaches_the_model_exactly(tmp_path, encode):
    values = np.random.default_rng(0).integers(0, 1024, (30, 16, 16, 1)).astype(np.uint16)
    for i, image in enumerate(values):
        (tmp_path / f"{i:02d}.png").write_bytes(encode(image))
    spec = DataSpec("folder", dir=str(tmp_path), image_size=0, channels=0, num_bits=10)
    spec = pipeline.describe(spec)
    assert spec.image_shape == (16, 16, 1)
    seen = [pipeline.preview(spec, split, 30) for split in ("train", "validation")]
    found = np.round(np.concatenate(seen) * 1023).astype(int)
    assert {i.tobytes() for i in found} == {i.astype(int).tobytes() for i in values}


def test_data_sets_of_eight_bits_refuse_more():
    with pytest.raises(DataError, match="data set 'digits' has 8 bits .*data.name=arrays"):
        splits.open_images(DataSpec("digits", image_size=16, num_bits=12), "train")
