import numpy as np
from PIL import Image

from nvae_jax import reporting


def test_uint8_rounds_and_clips():
    np.testing.assert_array_equal(
        reporting.to_uint8(np.array([-1.0, 0.0, 0.5, 127.6 / 255, 1.0, 2.0])),
        [0, 0, 128, 128, 255, 255],
    )


def test_grid_lays_out_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    grid = reporting.image_grid(images, columns=3)
    assert grid.shape == (6, 9, 3)
    assert grid[0, 0, 0] == 0 and grid[0, 3, 0] == 1 and grid[3, 0, 0] == 3
    assert grid[3, 6, 0] == reporting.GREY and grid[2, 0, 0] == reporting.GREY


def test_pairs_stand_above_each_other():
    above, below = np.zeros((8, 1, 1, 1)), np.ones((8, 1, 1, 1))
    rows = reporting.pair_rows(above, below).reshape(4, 4)
    np.testing.assert_array_equal(rows, [[0] * 4, [1] * 4, [0] * 4, [1] * 4])


def test_small_pictures_are_enlarged(tmp_path):
    reporting.save_png(tmp_path / "a.png", np.zeros((10, 20, 3), np.uint8))
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (500, 250)


def test_rows_after_the_step_are_dropped(tmp_path):
    with reporting.MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"train/loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "tra')
    with reporting.MetricWriter(tmp_path, step=2):
        pass
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
