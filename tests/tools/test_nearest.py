"""Nearest neighbours, compared with a plain search, and the files of the command."""

import json

import numpy as np
import pytest

from nvae_jax import nearest, neighbours
from nvae_jax.data import pipeline


def batches(images, size):
    """Batches like those of the data pipeline, of which the last one is filled up."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        filled = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), np.float32)])
        ids = np.where(np.arange(size) < len(part), np.arange(start, start + size), -1)
        yield {"image": filled, "mask": ids >= 0, "id": ids}


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_neighbours_equal_those_of_a_plain_search(fraction):
    rng = np.random.default_rng(0)
    images = rng.random((23, 8, 8, 3), np.float32)
    queries = np.concatenate([rng.random((4, 8, 8, 3), np.float32), images[7:8]])
    found = neighbours.find(queries, batches(images, 5), 3, crop_fraction=fraction)
    cut = np.s_[:, 2:-2, 2:-2] if fraction == 0.5 else np.s_[:]
    differences = queries[cut][:, None] - images[cut][None]
    distances = np.sqrt((differences**2).mean((2, 3, 4)))
    np.testing.assert_array_equal(found.index, np.argsort(distances, 1)[:, :3])
    expected = np.sort(distances, 1)[:, :3]
    np.testing.assert_allclose(found.distance, expected, rtol=1e-4, atol=1e-3)
    assert found.index[4, 0] == 7


def test_there_are_no_more_neighbours_than_images():
    images = np.random.default_rng(0).random((3, 4, 4, 1), np.float32)
    assert neighbours.find(images, batches(images, 2), 9).index.shape == (3, 3)


@pytest.mark.parametrize("wrong", [{"num": 0}, {"num": 1, "crop_fraction": 1.5}])
def test_invalid_numbers_are_errors(wrong):
    with pytest.raises(ValueError, match="num must be at least 1 and crop_fraction"):
        neighbours.find(np.zeros((1, 4, 4, 1)), [], **wrong)


def test_memorised_samples_have_smaller_distances_than_test_images(run, tmp_path, undocumented):
    spec = run.experiment.data.unbinarized()
    memorised = pipeline.preview(spec, "train", 6)
    summary = nearest.nearest_run(
        run, lambda: memorised, tmp_path, num=2, rows=3, metadata=run.metadata()
    )
    assert summary["median_sample_distance_full"] < 1e-3 < summary["median_test_distance_full"]
    assert not undocumented(summary)
    assert json.loads((tmp_path / "nearest.json").read_text()) == summary
    with np.load(tmp_path / "nearest.npz") as file:
        np.testing.assert_array_equal(file["sample_index_full"][:, 0], np.arange(6))
        assert file["test_distance_crop"].shape == (6, 2)
    assert (tmp_path / "nearest.png").exists() and (tmp_path / "nearest_crop.png").exists()


def test_samples_are_read_from_a_file_or_drawn(run, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    np.savez(tmp_path / "samples.npz", images=images)
    samples, metadata = nearest.load_or_draw_samples(run, 2, file=tmp_path / "samples.npz")
    np.testing.assert_allclose(samples() * 255, images[:2], rtol=1e-6)
    assert metadata["source"] == "samples.npz"
    nearest.nearest_run(run, samples, tmp_path, num=1, rows=1, metadata=metadata)
    with np.load(tmp_path / "nearest.npz") as file:
        assert file["samples"].shape == (2, 16, 16, 1) and file["source"] == "samples.npz"
    drawn, metadata = nearest.load_or_draw_samples(
        run, 2, temperature=0.8, recalibrate_bn=False, seed=1
    )
    np.testing.assert_allclose(drawn(), run.sample(2, temperature=0.8, seed=1), atol=1e-5)
    assert metadata["temperature"] == [0.8]
