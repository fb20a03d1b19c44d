"""Written samples do not depend on batch size or number of devices, and have metadata."""

import json

import numpy as np
import pytest
from PIL import Image

from nvae_jax import api, run_directory
from nvae_jax.prior_samples import sample_images
from nvae_jax.sample import sample_run


def draw(run, **kwargs):
    variables = run.state.variables
    return np.concatenate(list(sample_images(run.experiment, variables, **kwargs)))


def same(one, other):
    """Whether images are equal, except for a few that are rounded to the next value."""
    return one.shape == other.shape and np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_images_do_not_depend_on_the_batch_size(run):
    seven = draw(run, num=7, batch_size=4, temperature=[1.0, 0.5])
    assert seven.shape == (7, 16, 16, 1) and seven.dtype == np.uint8
    assert same(draw(run, num=5, batch_size=2, temperature=[1.0, 0.5]), seven[:5])
    assert not same(draw(run, num=7, batch_size=4, temperature=[1.0, 0.5], seed=1), seven)
    assert not same(draw(run, num=7, batch_size=4, temperature=0.5), seven)
    drawn = np.round(run.sample(7, temperature=[1.0, 0.5]) * 255)
    assert np.abs(seven - drawn).max() <= 1  # the Python API draws the same


def test_drawn_pixels_do_not_depend_on_the_batch_size(run):
    drawn = draw(run, num=4, batch_size=4, draw_pixels=True)
    assert set(np.unique(drawn)) == {0, 255}
    assert (draw(run, num=4, batch_size=2, draw_pixels=True) != drawn).mean() < 1e-3
    cold = draw(run, num=4, batch_size=4, draw_pixels=True, decoder_temperature=1e-6)
    np.testing.assert_array_equal(cold, np.round(draw(run, num=4, batch_size=4) / 255) * 255)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num": 0},
        {"num": 1, "batch_size": 0},
        {"num": 1, "temperature": 0.0},
        {"num": 1, "temperature": [1, 1, 1]},
        {"num": 1, "decoder_temperature": -1.0},
    ],
)
def test_invalid_numbers_are_errors(run, wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        sample_images(run.experiment, run.state.variables, **wrong)


def test_the_files_have_the_samples_and_their_metadata(run, workdir, tmp_path):
    sample_run(
        workdir,
        run.experiment,
        run.state,
        out=tmp_path,
        num=11,
        temperature=0.8,
        batch_size=4,
        png_files=True,
        seed=3,
    )
    with np.load(tmp_path / "samples.npz") as file:
        assert file["images"].shape == (11, 16, 16, 1) and file["images"].dtype == np.uint8
        assert (file["step"], file["temperature"], file["seed"]) == (0, 0.8, 3)
        assert str(file["recalibration"]) == "pooled" and file["recalibration_passes"] == 3
        images = file["images"]
    for name in ("samples.png", "images/000010.png"):
        with Image.open(tmp_path / name) as picture:
            assert json.loads(picture.text["temperature"]) == 0.8
            assert "NVAE of digits 16x16x1: 4 groups" in picture.text["model"]
            last = np.asarray(picture)
    np.testing.assert_array_equal(last, images[10, ..., 0])
    assert len(list((tmp_path / "images").iterdir())) == 11


def test_recalibration_changes_the_samples(run, workdir, tmp_path):
    def sample(**kwargs):
        options = {"out": tmp_path, "num": 3, "overwrite": True, **kwargs}
        sample_run(workdir, run.experiment, run.state, **options)
        with np.load(tmp_path / "samples.npz") as file:
            return file["images"]

    plain = sample(recalibrate_bn=False)
    assert not same(sample(), plain)
    assert not same(sample(recalibration="published"), plain)


def test_two_devices_draw_the_same_images(run, workdir, tmp_path, commands):
    flags = (f"--workdir={workdir}", "--num=6", "--batch_size=6", "--temperature=0.6", "--passes=2")
    options = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2"
    found = commands.run("sample", *flags, f"--out={tmp_path}", XLA_FLAGS=options)
    assert found.returncode == 0, found.stderr
    statistics = run.recalibrated(0.6, passes=2).variables["batch_stats"]
    variables = {**run.state.variables, "batch_stats": statistics}
    here = list(sample_images(run.experiment, variables, num=6, temperature=0.6, batch_size=6))
    with np.load(tmp_path / "samples.npz") as file:
        assert same(file["images"], here[0])


def test_wrong_values_are_a_one_line_error(commands, workdir, tmp_path):
    out = tmp_path / "out"
    found = commands.run("sample", f"--workdir={workdir}", f"--out={out}", "--temperature=1,1,1")
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("error: temperature: 3 values for 2 scale")
    assert "Traceback" not in found.stderr
    assert not out.exists()


def test_a_run_without_checkpoint_is_an_error(tmp_path, tiny_run_config):
    run_directory.save_config(tmp_path, tiny_run_config)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        api.load(tmp_path)
