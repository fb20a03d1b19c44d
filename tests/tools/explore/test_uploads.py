"""Pictures that are uploaded to the page."""

import io

import numpy as np
import pytest
from PIL import Image

from nvae_jax.data import limits
from nvae_jax.data.spec import DataSpec
from nvae_jax.explore import uploads

GREY = DataSpec("digits", image_size=16, binarize=True)


def encoded(array, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def test_a_picture_of_the_models_size_is_unchanged():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    png, note = uploads.fit(encoded(image), GREY)
    assert note == ""
    np.testing.assert_array_equal(uploads.read(png, GREY)[0, ..., 0] * 255, image)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_pictures_of_other_sizes_are_cropped_and_resized(form):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255  # the square in the middle
    png, note = uploads.fit(encoded(image, form), GREY)
    assert note == "40×20, cropped to a square and resized to 16×16"
    fitted = uploads.read(png, GREY)
    assert fitted.shape == (1, 16, 16, 1) and fitted.dtype == np.float32 and fitted.mean() > 0.95


def test_a_single_pixel_is_enlarged_and_converted_to_colour():
    spec = DataSpec("folder", image_size=16, channels=3, padding=2)
    png, note = uploads.fit(encoded(np.full((1, 1), 51, np.uint8)), spec)
    assert note == "1×1, resized to 12×12"
    np.testing.assert_allclose(uploads.read(png, spec), np.full((1, 12, 12, 3), 0.2))


def test_values_of_16_bits_are_kept():
    spec = DataSpec("folder", image_size=2, num_bits=12)
    image = np.array([[0, 4095], [1024, 257]], np.uint16)
    png, _ = uploads.fit(encoded(image), spec)
    np.testing.assert_allclose(uploads.read(png, spec)[0, ..., 0], image / 4095, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the file: not a PNG, JPEG, WebP, BMP or TIFF image"),
        (b"GIF89a no picture", "the file: not a PNG, JPEG, WebP, BMP or TIFF image"),
        (encoded(np.zeros((9, 9), np.uint8), "GIF"), "the file: not a PNG"),
        (encoded(np.random.default_rng(0).integers(0, 256, (30, 30), np.uint8))[:200], "damaged"),
    ],
)
def test_a_file_that_is_no_picture_is_refused(content, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        uploads.fit(content, GREY)
    assert "\n" not in str(error.value)


def test_a_file_or_picture_that_is_too_large_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="the file is too large: at most 32 MiB are allowed"):
        uploads.fit(bytes(uploads.LARGEST + 1), GREY)
    claims = encoded(np.zeros((100, 100), np.uint8))
    monkeypatch.setattr("nvae_jax.data.images.MAX_PIXELS", 9999)
    assert limits.MAX_PIXELS > 9999
    with pytest.raises(ValueError, match="the file: claims 100x100 pixels, but at most 9999"):
        uploads.fit(claims, GREY)
