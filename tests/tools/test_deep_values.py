"""Images of more than 8 bits are trained on, evaluated, sampled, and read again by the tools."""

import json

import numpy as np
import pytest
from PIL import Image

from nvae_jax import api, evaluate, inputs, loading, train
from nvae_jax.configs import base
from nvae_jax.encode import encode_run
from nvae_jax.nearest import load_or_draw_samples, nearest_run
from nvae_jax.reconstruct import reconstruct_run
from nvae_jax.sample import sample_run

SIZE = 8


def write_folder(folder, noise):
    for i, image in enumerate(noise):
        path = folder / ("train" if i < 64 else "test") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)


def write_arrays(folder, noise):
    np.save(folder / "train.npy", noise[:64, ..., 0])
    np.savez(folder / "test.npz", images=noise[64:])


@pytest.fixture(scope="module", params=[(10, "folder"), (12, "arrays")], ids=["10", "12"])
def trained(request, tmp_path_factory):
    """(bits, noise of so many bits, the run directory of a small model trained on it)."""
    bits, name = request.param
    root = tmp_path_factory.mktemp(name)
    noise = np.random.default_rng(0).integers(0, 2**bits, (96, SIZE, SIZE, 1)).astype(np.uint16)
    (root / "data").mkdir()
    {"folder": write_folder, "arrays": write_arrays}[name](root / "data", noise)
    config = base.get_config()
    config.data.update(name=name, dir=str(root / "data"), image_size=SIZE, num_bits=bits)
    config.model.update(num_scales=1, num_groups=2, latent_channels=1, process_blocks=1)
    config.model.update(encoder_width=4, decoder_width=4, preprocess_cells=1, postprocess_cells=1)
    config.model.update(encoder_cells_per_group=1, decoder_cells_per_group=1, num_mixtures=4)
    config.model.update(likelihood="auto", decoder_cell="residual", unroll=1)
    config.train.update(num_steps=150, batch_size=16)
    config.optimizer.warmup_steps = 5
    config.eval.update(recalibration_passes=1, recalibration_batch_size=4, batch_size=16)
    config.log.update(every_steps=150, images_every_steps=0, num_images=4)
    train.train(config, root / "run")
    return bits, noise, root / "run"


def test_a_model_of_noise_reaches_its_entropy(trained):
    bits, _, workdir = trained
    row = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert bits - 0.05 < row["train/nelbo"] / (SIZE**2 * np.log(2)) < bits + 0.5
    options = {"split": "test", "num_iw_samples": 1, "max_examples": None, "seed": 0}
    result = evaluate.evaluate_run(workdir, *loading.load_run(workdir), **options, batch_size=None)
    assert bits - 0.05 < result["bits_per_dim"] < bits + 0.5


def test_samples_have_all_bits_and_can_be_read_again(trained, tmp_path):
    bits, noise, workdir = trained
    run = api.load(workdir)
    sample_run(workdir, run.experiment, run.state, out=tmp_path, num=5, passes=1, png_files=True)
    with np.load(tmp_path / "samples.npz") as file:
        samples, white = file["images"], int(file["max_value"])
    assert samples.dtype == np.uint16 and white == 2**bits - 1
    assert samples.max() <= white and len(np.unique(samples)) > 256  # of 320
    again = inputs.read(tmp_path / "samples.npz", run.experiment.data)
    np.testing.assert_array_equal(np.round(again * white), samples)
    single = inputs.read(tmp_path / "images" / "000003.png", run.experiment.data)
    np.testing.assert_array_equal(np.round(single[0] * 65535).astype(int) >> 16 - bits, samples[3])
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.mode == "I;16"
    queries, metadata = load_or_draw_samples(run, 2, file=tmp_path / "samples.npz")
    summary = nearest_run(run, queries, tmp_path, num=1, rows=1, metadata=metadata)
    assert 0 < summary["median_sample_distance_full"] < 1
    with np.load(tmp_path / "nearest.npz") as file:
        np.testing.assert_array_equal(file["samples"], samples[:2])


def test_images_pass_through_the_tools_with_all_bits(trained, tmp_path):
    bits, noise, workdir = trained
    run = api.load(workdir)
    np.save(tmp_path / "mine.npy", noise[:2])
    images = inputs.select(run.experiment, images=tmp_path / "mine.npy")
    np.testing.assert_array_equal(np.round(images * (2**bits - 1)), noise[:2])
    test = inputs.select(run.experiment, num=2)
    np.testing.assert_array_equal(np.round(test * (2**bits - 1)), noise[64:66])
    encode_run(run, images, tmp_path / "latents.npz")
    reconstruct_run(run, images, tmp_path, groups=[0, 2])
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert picture.mode == "I;16"
