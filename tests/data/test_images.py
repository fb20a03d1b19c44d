import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from nvae_jax.data import images
from nvae_jax.data.spec import CorruptError

KINDS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF"]


def smooth(height=20, width=20):
    """A picture that lossy formats hardly change."""
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * y, 8 * x, 4 * (x + y)], -1).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_decoded_to_colour(kind, encode):
    decoded = images.decode(encode(smooth(), kind, quality=100), "file")
    assert decoded.dtype == np.uint8 and decoded.shape == (20, 20, 3)
    assert np.abs(decoded.astype(int) - smooth()).mean() < 3


def test_png_is_lossless(encode, colour_images):
    (image,) = colour_images(1)
    np.testing.assert_array_equal(images.decode(images.encode(image), "file"), image)
    grey = image[..., :1]
    np.testing.assert_array_equal(images.decode(images.encode(grey), "file"), grey)


def test_channels_are_those_of_the_file_unless_given(encode):
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


def test_the_rotation_of_the_camera_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    Image.fromarray(smooth(20, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert images.read_file(tmp_path / "turned.jpg").shape == (30, 20, 3)


def test_rotation_and_a_white_background_are_applied_in_every_format(encode, tmp_path):
    exif, image = Image.Exif(), np.full((3, 5, 4), 77, np.uint8)
    exif[0x0112], image[..., 3] = 6, 0
    for kind, suffix in (("PNG", ".PNG"), ("WEBP", ".webp"), ("TIFF", ".Tif")):
        (tmp_path / f"a{suffix}").write_bytes(encode(image, kind, exif=exif))
        read = images.read_file(tmp_path / f"a{suffix}")
        assert read.shape == (5, 3, 3) and (read == 255).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_a_one_line_error(kind, encode):
    content = encode(smooth(12, 12), kind)
    for length in range(0, len(content) - 1, 7):
        try:
            decoded = images.decode(content[:length], "album/cut")
        except CorruptError as error:
            assert str(error).startswith("album/cut: ") and "\n" not in str(error)
        else:  # Formats end in bytes that hold no pixels.
            np.testing.assert_array_equal(decoded, images.decode(content, "whole"))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_raise_only_the_documented_error(kind, encode):
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


# Pillow itself warns from about 89 million pixels on, and refuses twice as many.
@pytest.mark.parametrize("side", [8193, 10_000, 60_000])
def test_image_bombs_are_refused(side, tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(side, side))
    for read in (images.read_file, images.read_header):
        if read is images.read_file or side > 8193:
            with pytest.raises(CorruptError, match="bomb.png: claims .*allowed"):
                read(tmp_path / "bomb.png")


def test_an_image_bomb_is_refused_without_a_warning_of_pillow(tmp_path):
    """In a process of its own, in which warnings are no errors."""
    (tmp_path / "bomb.png").write_bytes(png_that_claims(10_000, 10_000))
    code = "import sys, pathlib; from nvae_jax.data import images\n"
    code += (
        "images.read_header(pathlib.Path(sys.argv[1]))\nimages.read_file(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.png")]
    error = subprocess.run(command, capture_output=True, text=True).stderr
    assert error.splitlines()[-1].endswith("are allowed") and "Warning" not in error


def test_a_text_chunk_that_unpacks_to_much_is_refused():
    content = png_that_claims(4, 4)
    body = b"Comment\0\0" + zlib.compress(bytes(2**24))
    text = struct.pack(">I", len(body)) + b"zTXt" + body
    text += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    with pytest.raises(CorruptError, match="bomb: damaged image"):
        images.decode(content[:33] + text + content[33:], "bomb")


@pytest.mark.parametrize("read", [images.read_file, images.read_header])
def test_a_fifo_in_place_of_a_file_is_refused_without_waiting(read, tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(CorruptError, match="fifo.png: cannot be read .is a FIFO, not a file"):
        read(tmp_path / "fifo.png")


@pytest.mark.parametrize(
    "kind, suffix", [("PNG", ".jpg"), ("JPEG", ".png"), ("WEBP", ".jpeg"), ("BMP", ".png")]
)
def test_files_whose_ending_contradicts_their_format_are_refused(kind, suffix, encode, tmp_path):
    path = tmp_path / f"liar{suffix}"
    path.write_bytes(encode(smooth(), kind))
    with pytest.raises(CorruptError, match=f"liar{suffix}: is a {kind} file"):
        images.read_file(path)


@pytest.mark.parametrize("kind", ["GIF", "EPS", "PPM"])
def test_other_formats_are_refused_whatever_their_name(kind, encode, tmp_path):
    path = tmp_path / "other.png"
    path.write_bytes(encode(smooth(), kind))
    with pytest.raises(CorruptError, match="other.png: not a PNG, JPEG, WebP, BMP or TIFF"):
        images.read_file(path)


def test_unreadable_file_is_named(tmp_path):
    with pytest.raises(CorruptError, match="absent.png: cannot be read"):
        images.read_file(tmp_path / "absent.png")


def test_fit_crops_the_centre_and_resizes_like_pillow():
    image = smooth(30, 50)
    expected = Image.fromarray(image[:, 10:40]).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images.fit(image, 16), np.asarray(expected))
    assert images.fit(image[..., :1], 16).shape == (16, 16, 1)


def test_fit_crops_the_given_box():
    image = smooth(218, 178)
    expected = Image.fromarray(image).crop((15, 40, 163, 188)).resize((64, 64), 2)
    np.testing.assert_array_equal(images.fit(image, 64, (15, 40, 163, 188)), np.asarray(expected))
