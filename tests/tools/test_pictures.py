"""Pictures, animations and streamed arrays."""

import json

import numpy as np
import pytest
from PIL import Image

from nvae_jax import pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_has_the_pixels_and_metadata(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, channels), np.uint8)
    pictures.save_png(tmp_path / "new" / "a.png", image, {"step": 3, "model": "tiny"})
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.text == {"step": "3", "model": "tiny"}
        np.testing.assert_array_equal(np.asarray(picture).reshape(image.shape), image)


def test_values_are_rounded_and_clipped_to_uint8():
    np.testing.assert_array_equal(
        pictures.to_uint8(np.array([-1.0, 0.0, 0.5, 127.6 / 255, 1.0, 2.0])),
        [0, 0, 128, 128, 255, 255],
    )


def test_values_of_more_than_eight_bits_are_written_exactly(tmp_path):
    """Arrays have the exact values, and grey pictures have 16 bits."""
    levels = np.linspace(0, 1, 4096, dtype=np.float32).reshape(1, 64, 64, 1)
    values = pictures.to_values(levels, 12)
    np.testing.assert_array_equal(values.ravel(), np.arange(4096))
    assert values.dtype == np.uint16 and pictures.value_metadata(12) == {"max_value": 4095}
    assert pictures.to_values(levels, 5).dtype == np.uint8 and not pictures.value_metadata(8)
    pictures.save_grid(tmp_path / "grey.png", levels, {"step": 3}, num_bits=12)
    with Image.open(tmp_path / "grey.png") as picture:
        assert picture.mode == "I;16" and picture.text == {"step": "3", "max_value": "65535"}
        found = np.asarray(picture)[: 12 * 64 : 12, : 12 * 64 : 12]
        np.testing.assert_array_equal(found >> 4, values[0, ..., 0])
    colour = np.concatenate([levels, 1 - levels, levels], -1)
    pictures.save_grid(tmp_path / "colour.png", colour, num_bits=12)
    with Image.open(tmp_path / "colour.png") as picture:
        assert picture.mode == "RGB" and np.asarray(picture).max() == 255


def test_a_grid_is_filled_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    grid = pictures.image_grid(images, columns=3)
    assert grid.shape == (6, 9, 3)
    assert grid[0, 0, 0] == 0 and grid[0, 3, 0] == 1 and grid[3, 0, 0] == 3
    assert grid[3, 6, 0] == pictures.GREY and grid[2, 0, 0] == pictures.GREY


def test_pairs_are_placed_above_each_other():
    above, below = np.zeros((8, 1, 1, 1)), np.ones((8, 1, 1, 1))
    rows = pictures.pair_rows(above, below).reshape(4, 4)
    np.testing.assert_array_equal(rows, [[0] * 4, [1] * 4, [0] * 4, [1] * 4])


def test_small_pictures_are_enlarged(tmp_path):
    pictures.save_png(tmp_path / "a.png", np.zeros((10, 20, 3), np.uint8), enlarge=True)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (800, 400)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_plays_forwards_and_backwards(tmp_path, suffix):
    frames = np.linspace(0, 1, 5)[:, None, None, None] * np.ones((1, 8, 8, 3))
    pictures.save_animation(tmp_path / f"a{suffix}", frames, {"step": 3})
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.n_frames == 8 and picture.size == (320, 320)
        comment = picture.info["comment"] if suffix == ".gif" else picture.getexif()[0x010E]
        assert json.loads(comment) == {"step": 3}
    with pytest.raises(ValueError, match="must end in .gif or .webp"):
        pictures.save_animation(tmp_path / "a.mp4", frames)


def test_a_stream_writes_the_file_that_numpy_writes(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (10, 3, 4), np.uint8)
    with pictures.ArrayStream(tmp_path / "a.npz", "images", array.shape, np.uint8, step=3) as file:
        assert not (tmp_path / "a.npz").exists()
        for start in range(0, 10, 4):
            file.write(array[start : start + 4])
    with np.load(tmp_path / "a.npz") as loaded:
        np.testing.assert_array_equal(loaded["images"], array)
        assert loaded["step"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_incomplete_streams_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="2 row"):
        with pictures.ArrayStream(tmp_path / "a.npz", "images", (3, 2), np.uint8) as file:
            file.write(np.zeros((1, 2), np.uint8))
    with pytest.raises(KeyboardInterrupt):
        with pictures.ArrayStream(tmp_path / "a.npz", "images", (3, 2), np.uint8):
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
