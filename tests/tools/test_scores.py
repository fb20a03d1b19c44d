"""Scores of single images, compared with the model's own terms, and the files of the command."""

import csv
import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from nvae_jax import api, detection, score, scores
from nvae_jax.build import build_likelihood, build_model
from nvae_jax.data import digits
from nvae_jax.data.images import fit
from nvae_jax.image_sets import open_set
from nvae_jax.likelihoods import bits_per_dim
from nvae_jax.models.latents import POSTERIOR, PRIOR
from nvae_jax.noise import image_keys, latent_noise
from nvae_jax.pictures import save_png


@pytest.fixture(scope="module")
def found(run, images):
    return api.score(run, images, num_samples=2, seed=3)


def test_the_bounds_equal_those_of_evaluation(run, images, found):
    np.testing.assert_allclose(
        found["log_p"], run.log_prob(images, num_samples=2, seed=3), rtol=1e-5
    )
    model, total = run.experiment.model, 0
    infer = jax.jit(model.apply)
    for number in range(2):
        key = jax.random.fold_in(jax.random.key(3), number)
        noise = latent_noise(model, image_keys(key, np.arange(5)))
        out = infer(run.variables, run.prepare(images, 3), noise=noise)
        kl = out.kl[:, 2:].sum(1), out.kl[:, :2].sum(1)  # two groups a scale, coarsest first
        log_p = run.experiment.likelihood(out.logits).log_prob(images)
        total += np.stack([log_p - sum(kl), *kl])
    for name, expected in zip(("elbo", "kl_scale_0", "kl_scale_1"), total / 2, strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)


def test_in_l_gt_k_the_finest_scales_come_from_the_prior(run, images, found):
    """Computes L^{>1} in a plain pass with the first two groups from the posterior and the others
    from the prior."""
    model, likelihood = run.experiment.model, run.experiment.likelihood
    sources, expected = [POSTERIOR, POSTERIOR, PRIOR, PRIOR], 0
    features = run.programs.encode(run.variables, images)
    compose = jax.jit(partial(model.apply, method="compose"))
    for number in range(2):
        key = jax.random.fold_in(jax.random.key(3), number)
        noise = latent_noise(model, image_keys(key, np.arange(5)))
        draw = compose(run.variables, noise, sources, 1.0, features)
        kl = [draw.posterior[g].kl(draw.prior[g]).sum((1, 2, 3)) for g in (0, 1)]
        expected += (likelihood(draw.logits).log_prob(images) - sum(kl)) / 2
    np.testing.assert_allclose(found["l_gt_1"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["llr_gt_1"], found["elbo"] - found["l_gt_1"])
    assert "l_gt_2" not in found


def test_the_scores_of_an_image_do_not_depend_on_the_others(run, images, found):
    assert run.batch_size == 8
    few = api.score(run, images[3:], num_samples=2, seed=3, numbers=[3, 4])
    for name, values in few.items():
        np.testing.assert_allclose(values, found[name][3:], rtol=1e-4, atol=1e-5, err_msg=name)


def test_scores_are_given_in_nats_and_bits_per_dimension(found):
    names = {"elbo", "log_p", "kl_scale_0", "kl_scale_1", "l_gt_1", "llr_gt_1"}
    assert found.keys() == names | {f"{name}_bits_per_dim" for name in names}
    for name in names:
        assert found[name].shape == (5,) and found[name].dtype == np.float64
        bits = bits_per_dim(found[name], 256)
        np.testing.assert_allclose(found[f"{name}_bits_per_dim"], bits)


def test_a_missing_scale_is_an_error(run, images):
    with pytest.raises(ValueError, match=r"no L\^{>2}: for 2 scale\(s\) k is from"):
        api.score(run, images, scales=[2])
    assert "l_gt_1" not in api.score(run, images, scales=[])
    with pytest.raises(ValueError, match="whole numbers, not '1,x'"):
        scores.parse_scales(["1", "x"])


def test_with_flows_the_kl_is_estimated_from_the_sample(tiny_run_config, random_variables, images):
    config = tiny_run_config.copy_and_resolve_references()
    config.model.update(num_flows=1, num_scales=1, num_groups=2)
    model, key, likelihood = build_model(config), jax.random.key(0), build_likelihood(config)
    variables = random_variables(config)
    noise = latent_noise(model, image_keys(key, np.arange(5)))
    out = jax.jit(model.apply)(variables, images, noise=noise)

    @jax.jit
    def score_step(variables, images):
        features = model.apply(variables, images, method="encode")
        step = scores.make_score_step(model, likelihood)
        return step(variables, features, key, np.arange(5), images, 0)

    terms = score_step(variables, images)
    np.testing.assert_allclose(terms["kl"][:, 0], out.kl.sum(1), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(terms["bound"], terms["log_weight"], rtol=1e-4)


def test_detection_measures_equal_those_computed_by_hand():
    """In 5 of 2 × 3 pairs the other image has the higher score."""
    known, other = np.array([0.0, 2.0]), np.array([1.0, 3.0, 4.0])
    found = detection.measure(known, other, "llr_gt_1")
    assert found["other_is"] == "high"
    np.testing.assert_allclose(found["auroc"], 5 / 6)
    np.testing.assert_allclose(found["auprc"], (1 + 1 + 3 / 4) / 3)
    assert found["fpr80"] == 0.5  # a threshold that finds all three also includes 2.0
    turned = detection.measure(-known, -other, "elbo")
    assert turned == {**found, "other_is": "low"}
    with pytest.raises(ValueError, match=r"elbo: 1 score\(s\) are not finite"):
        detection.measure(known, np.array([np.nan]), "elbo")


def test_the_command_writes_its_files(run, images, tmp_path, undocumented):
    np.save(tmp_path / "own.npy", images)
    save_png(tmp_path / "pictures" / "b.png", np.zeros((30, 20, 1), np.uint8))
    save_png(tmp_path / "pictures" / "a" / "c.png", np.full((16, 16, 3), 255, np.uint8))
    out, options = tmp_path / "out", {"num_iw_samples": 2, "seed": 3}
    against = str(tmp_path / "pictures")
    summary = score.score_run(
        run, out, images=str(tmp_path / "own.npy"), against=against, **options
    )
    assert json.loads((out / "scores.json").read_text()) == summary
    found, means = api.score(run, images, num_samples=2, seed=3), summary["against_mean"]
    with open(out / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with np.load(out / "scores.npz") as file:
        arrays = dict(file)
    for name, values in found.items():
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-6)
        np.testing.assert_array_equal(arrays[name], values)
        np.testing.assert_allclose(summary[name], values.mean())
    assert arrays["weights"] == run.state.fingerprint
    assert (out / "against.csv").read_text().splitlines()[1].startswith("0,a/c.png,")
    assert means["num_examples"] == 2 and summary["images"] == "own.npy"
    assert set(summary["detection"]) == {n for n in found if "bits" not in n}
    named = {"kl_scale_0": "kl_scale_S", "kl_scale_1": "kl_scale_S", "llr_gt_1": "llr_gt_K"}
    known = {
        name for name in [*summary, *means, *summary["detection"]["elbo"]] if "bits" not in name
    }
    assert not undocumented({named.get(name, name) for name in known} - {"l_gt_1"})
    assert (out / "scores.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="num_iw_samples is 2 in the file and 1 now"):
        score.score_run(run, out, images=str(tmp_path / "own.npy"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tset", "'tset' is neither a file or folder, nor a split of 'digits' .*, nor a data set"),
        ("no/such/folder", "there is no file no/such/folder"),
        ("{}", "has no images of a known type"),
        ("{}/small.npy", r"small.npy: images must be of shape \(N, 16, 16, 1\)"),
        ("{}/none.npy", "none.npy: there must be at least one image"),
        ("{}/text.png", "text.png"),
        ("validation", "no split 'validation'"),
        ("cifar10", "cifar10"),
    ],
)
def test_invalid_image_sets_are_errors(run, tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "small.npy", np.zeros((2, 8, 8, 1), np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((0, 16, 16, 1), np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    folder = tmp_path / "empty" if source == "{}" else tmp_path
    with pytest.raises(ValueError, match=message) as error:
        score.score_run(run, tmp_path / "out", images=source.format(folder), max_examples=2)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_split_and_another_data_set_are_image_sets(run, tmp_path):
    assert open_set(run.experiment.data, "test").images.shape == (297, 16, 16, 1)
    larger = dataclasses.replace(run.experiment.data, image_size=32, padding=2, name="mnist")
    found = open_set(larger, "digits")
    assert found.name == "digits test" and found.images[0].shape == (28, 28, 1)


def test_unreadable_pictures_are_skipped_if_the_run_skips_them(run, tmp_path):
    for name in "abc":
        save_png(tmp_path / "test" / f"{name}.png", np.zeros((16, 16, 1), np.uint8))
        save_png(tmp_path / "train" / f"{name}.png", np.zeros((16, 16, 1), np.uint8))
    (tmp_path / "test" / "b.png").write_text("no picture")
    spec = dataclasses.replace(
        run.experiment.data, name="folder", dir=str(tmp_path), skip_corrupt=True
    )
    numbers = [list(n) for n, _ in open_set(spec, "test").batches(2)]
    assert numbers == [[0], [2]]


def test_the_likelihood_ratio_detects_digits_that_are_likelier_than_clothes(make_run, tmp_path):
    """Shows the failure that Havtorn et al. (2021) describe, and their remedy. The model has the
    tiny config and was trained on Fashion-MNIST at 16x16 for 4,000 steps of 32 images; the other
    images are scikit-learn's digits, 12x12 in the middle."""
    with np.load(Path(__file__).parent / "fashion_mnist_16.npz") as file:
        arrays = dict(file)
    clothes = arrays.pop("images")  # the first 150 test images
    flat = {name: array.astype(np.float32) for name, array in arrays.items()}
    variables = traverse_util.unflatten_dict(flat, sep="/")
    run = api.load(make_run(tmp_path / "fashion", variables))
    small = [fit(image, 12) for image in digits.read_images("test")[:150]]
    numerals = np.pad(np.stack(small), ((0, 0), (2, 2), (2, 2), (0, 0)))
    known, other = (api.score(run, images, num_samples=4) for images in (clothes, numerals))
    assert other["elbo"].mean() > known["elbo"].mean() + 10
    found = detection.measure_all(known, other)
    assert found["elbo"]["auroc"] < 0.4 and found["log_p"]["auroc"] < 0.4
    assert found["llr_gt_1"]["auroc"] > 0.85 and found["llr_gt_1"]["fpr80"] < 0.25
