"""KL by latent variable and active units, compared with a direct computation."""

import json

import jax
import numpy as np
import pytest

from nvae_jax import analyze, objective, posterior_moments
from nvae_jax.build import build_model
from nvae_jax.noise import image_keys, latent_noise


@pytest.fixture
def run(small_run):
    """A run with two scales of one group."""
    return small_run


def test_moments_and_summary_equal_direct_computations(run, images):
    batches = [
        {"image": images, "mask": np.ones(5, bool)},
        {"image": images[::-1], "mask": np.array([True, True, False, False, False])},
    ]
    count, moments = posterior_moments.latent_moments(run, batches, seed=2)
    assert count == 7
    model = run.experiment.model
    noise = latent_noise(model, image_keys(jax.random.key(2), np.arange(7)))
    seven = images[[0, 1, 2, 3, 4, 4, 3]]
    out = jax.jit(model.apply)(run.state.variables, seven, noise=noise)
    for group, per_channel in zip(moments, out.kl_per_channel, strict=True):
        np.testing.assert_allclose(group.kl.sum((0, 1)), per_channel, rtol=1e-4)
        assert (group.variance >= 0).all()
    summary = analyze.summarize(run, count, moments)
    np.testing.assert_allclose(summary["kl"], out.kl.sum(1).mean(), rtol=1e-4)
    bits = summary["kl"] / np.log(2) / 256
    np.testing.assert_allclose(summary["kl_bits_per_dim"], bits, rtol=1e-6)
    assert [scale["size"] for scale in summary["scales"]] == [4, 8]
    assert summary["variables"] == (4 * 4 + 8 * 8) * 2
    assert summary["units"] == 2 * 2
    one = [{"image": images, "mask": np.arange(5) == 0}]  # the others cannot be read
    with pytest.raises(ValueError, match="at least two images"):
        posterior_moments.latent_moments(run, one)
    by_scale = sum(scale["kl"] for scale in summary["scales"])
    np.testing.assert_allclose(by_scale, summary["kl"])


def test_a_variable_without_variance_or_kl_is_inactive(run):
    quiet, busy = np.zeros((4, 4, 2)), np.ones((4, 4, 2))
    half = busy.copy()
    half[..., 1] = 0
    large = np.ones((8, 8, 2))
    for pairs, expected in (
        ([(busy, quiet), (large * 0.009, large)], [0, 0]),
        ([(half, busy), (large, large)], [16, 128]),
    ):
        moments = [posterior_moments.Moments(kl, variance, 0 * kl) for kl, variance in pairs]
        groups = analyze.summarize(run, 10, moments)["groups"]
        assert [group["used_variables"] for group in groups] == expected


def test_active_units_are_counted_as_in_training(run):
    """Channels just below and above the threshold are counted alike from the same KL."""
    shapes = run.latent_shapes
    kl = [np.full(s, 0.1 / s[0] ** 2) * np.array([0.9, 1.1]) for s in shapes]
    summary = analyze.summarize(run, 10, [posterior_moments.Moments(k, 0 * k, 0 * k) for k in kl])
    assert [group["active_units"] for group in summary["groups"]] == [1, 1]
    per_channel = np.stack([k.sum((0, 1)) for k in kl])
    assert summary["active_units"] == objective.active_units(per_channel) == 2


def test_the_prior_gap_equals_its_closed_form():
    """The gap of samples of the prior itself is zero on average."""
    draws = np.random.default_rng(0).normal(size=(400, 500, 2, 3))
    own = posterior_moments.prior_gap(*sums(draws))
    assert own.shape == (500, 2) and abs(own.mean()) < 1e-3 < own.std()
    turn = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0, 2]])
    gap = posterior_moments.prior_gap(*sums(draws @ turn.T + [0, 0, 1]))
    # Variances 1, 1 and 4 with a correlation of 0.8, and a mean of 1.
    expected = 0.5 * (1 + 1 + 4 - 3 - np.log(0.36 * 4) + 1)
    np.testing.assert_allclose(gap.mean(), expected, rtol=0.01)
    assert np.isnan(posterior_moments.prior_gap(*sums(draws[:3]))).all()


def sums(draws):
    return len(draws), draws.sum(0), np.einsum("nhwi,nhwj->hwij", draws, draws)


def test_the_explanation_has_the_numbers_of_the_gap():
    points = [{"groups": k, "frechet": f} for k, f in ((0, 9.0), (1, 8.0), (3, 2.0), (4, 1.0))]
    text = analyze.explain_gap({"kl": 20.0, "prior_gap": 5.0, "rate_distortion": points})
    assert "at least 5.00 of 20.00 nats of KL (25%)" in text
    assert "9 for samples and 1 for reconstructions" in text
    assert text.endswith("falls most once the posterior gives group 1 to 2")


def test_with_flows_the_kl_is_estimated_from_the_sample(tiny_run_config, random_variables, images):
    config = tiny_run_config.copy_and_resolve_references()
    config.model.update(num_flows=1, num_scales=1, num_groups=1)
    model, key = build_model(config), jax.random.key(0)
    variables = random_variables(config)
    noise = latent_noise(model, image_keys(key, np.arange(5)))
    out = jax.jit(model.apply)(variables, images, noise=noise)
    step = jax.jit(posterior_moments.make_moment_step(model))
    sums = step(variables, key, np.arange(5), images, np.ones(5, bool))
    for (kl, *_), expected in zip(sums, out.kl_per_channel, strict=True):
        np.testing.assert_allclose(kl.sum((0, 1)) / 5, expected, rtol=1e-3, atol=1e-2)


def test_the_files_of_an_analysis_of_few_images_are_written(
    run, tmp_path, undocumented, monkeypatch
):
    seen, original = [], analyze.latent_moments

    def spied(run, batches, **options):
        batches = list(batches)
        seen.extend(len(batch["image"]) for batch in batches)
        return original(run, batches, **options)

    monkeypatch.setattr(analyze, "latent_moments", spied)
    summary = analyze.analyze_run(run, tmp_path, max_examples=5)
    assert seen == [5] and run.batch_size > 5  # a small batch is not filled up
    assert summary["num_examples"] == 5 and summary["split"] == "test"
    assert json.loads((tmp_path / "latents.json").read_text()) == summary
    groups, points = summary["groups"], summary["rate_distortion"]
    assert not undocumented([*summary, *groups[0], *summary["scales"][0], *points[0]])
    with np.load(tmp_path / "latents.npz") as file:
        assert file["kl_01"].shape == file["variance_01"].shape == (8, 8, 2)
        gap = max(file["prior_gap_01"].sum(), 0)
        np.testing.assert_allclose(summary["groups"][1]["prior_gap"], gap)
    for name in ("latents", "rate_distortion", "prior_gap"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert not (tmp_path / "training.png").exists()  # of a run without metrics
    with pytest.raises(ValueError, match="at least two images, not 1"):
        analyze.analyze_run(run, tmp_path / "one", max_examples=1)
