import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from nvae_jax.data import images
from nvae_jax.data.spec import CorruptError

KINDS = ["PNG", "JPEG", "WEBP"]


def smooth(height=20, width=20):
    """A picture that lossy formats keep nearly as it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * y, 8 * x, 4 * (x + y)], -1).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_decodes_colour(kind, encode):
    decoded = images.decode(encode(smooth(), kind, quality=100), "file")
    assert decoded.dtype == np.uint8 and decoded.shape == (20, 20, 3)
    assert np.abs(decoded.astype(int) - smooth()).mean() < 3


def test_png_is_lossless(encode, colour_images):
    (image,) = colour_images(1)
    np.testing.assert_array_equal(images.decode(images.encode(image), "file"), image)
    grey = image[..., :1]
    np.testing.assert_array_equal(images.decode(images.encode(grey), "file"), grey)


def test_channels_follow_the_file_unless_asked_for(encode):
    colour, grey = encode(smooth()), encode(smooth()[..., :1])
    assert images.decode(colour, "file").shape[-1] == 3
    assert images.decode(grey, "file").shape[-1] == 1
    assert images.decode(colour, "file", channels=1).shape[-1] == 1
    np.testing.assert_array_equal(
        images.decode(grey, "file", channels=3), np.repeat(smooth()[..., :1], 3, -1)
    )


def test_transparent_pixels_become_white(encode):
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = (10, 20, 30, 255)
    decoded = images.decode(encode(image), "file")
    assert decoded[0, 0].tolist() == [10, 20, 30] and (decoded[1] == 255).all()


def test_sixteen_bits_are_scaled_to_eight(encode):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16, 1)
    decoded = images.decode(encode(values), "file")
    np.testing.assert_array_equal(decoded, np.arange(256).reshape(16, 16, 1))


def test_camera_rotation_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    Image.fromarray(smooth(20, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert images.read_file(tmp_path / "turned.jpg").shape == (30, 20, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_one_clear_error(kind, encode):
    content = encode(smooth(12, 12), kind)
    for length in range(0, len(content) - 1, 7):
        try:
            decoded = images.decode(content[:length], "album/cut")
        except CorruptError as error:
            assert str(error).startswith("album/cut: ") and "\n" not in str(error)
        else:  # Formats end in bytes that hold no pixels.
            np.testing.assert_array_equal(decoded, images.decode(content, "whole"))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_raises_nothing_else(kind, encode):
    content = encode(smooth(12, 12), kind)
    random = np.random.default_rng(0)
    for position in random.choice(len(content), min(len(content), 200), replace=False):
        damaged = bytearray(content)
        damaged[position] ^= int(random.integers(1, 256))
        try:
            images.decode(bytes(damaged), "damaged")
        except CorruptError as error:
            assert str(error).startswith("damaged: ")


def png_that_claims(width, height):
    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


# Pillow itself warns from about 89 million pixels on: before the image is refused here.
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8193, 10_000, 60_000])
def test_image_bombs_are_refused(side):
    with pytest.raises(CorruptError, match="bomb: .*(refused|exceeds limit)"):
        images.decode(png_that_claims(side, side), "bomb")


@pytest.mark.parametrize(
    "kind, suffix", [("PNG", ".jpg"), ("JPEG", ".png"), ("WEBP", ".jpeg"), ("PNG", ".webp")]
)
def test_files_that_lie_about_their_type_are_refused(kind, suffix, encode, tmp_path):
    path = tmp_path / f"liar{suffix}"
    path.write_bytes(encode(smooth(), kind))
    with pytest.raises(CorruptError, match=f"liar{suffix}: is a {kind} file"):
        images.read_file(path)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused_whatever_their_name(kind, encode, tmp_path):
    path = tmp_path / "other.png"
    path.write_bytes(encode(smooth(), kind))
    with pytest.raises(CorruptError, match="other.png: not a PNG, JPEG or WebP"):
        images.read_file(path)


def test_unreadable_file_is_named(tmp_path):
    with pytest.raises(CorruptError, match="absent.png: cannot be read"):
        images.read_file(tmp_path / "absent.png")


def test_fit_takes_the_centre_and_then_resizes_as_pillow_does():
    image = smooth(30, 50)
    expected = Image.fromarray(image[:, 10:40]).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images.fit(image, 16), np.asarray(expected))
    assert images.fit(image[..., :1], 16).shape == (16, 16, 1)


def test_fit_takes_the_box_of_celeba():
    image = smooth(218, 178)
    expected = Image.fromarray(image).crop((15, 40, 163, 188)).resize((64, 64), 2)
    np.testing.assert_array_equal(images.fit(image, 64, (15, 40, 163, 188)), np.asarray(expected))
