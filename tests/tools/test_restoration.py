"""Restoration: known pixels are kept, wrong input is refused, and both methods use the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nvae_jax import api, likelihoods
from nvae_jax.models.latents import PRIOR
from nvae_jax.restoration import baselines, masks, results, smooth
from nvae_jax.restoration.degradation import degrade, observe
from nvae_jax.restoration.observed import DECAY, REACH, Observed
from nvae_jax.restoration.restore import FAINT, METHODS, check_settings, lean
from nvae_jax.restoration.smooth import grow, shrink

HALF = np.arange(16) < np.full((16, 1), 8)  # the left half is known
CHEAP = {"num_samples": 2, "steps": 3}


@pytest.fixture
def run(small_run):
    """A run with two scales of one group, so that programs compile fast."""
    return small_run


def compiled(function):
    """The function's value, computed by one compiled program."""
    return jax.jit(function)()


def gaussian_pixels(mean, scale):
    """p(x | z) of grey images, from means and standard deviations in units of [0, 1]."""
    parameters = [2 * mean - 1, np.log(2 * scale - 0.01)]
    logits = jnp.asarray(np.concatenate(parameters, -1), jnp.float32)
    return likelihoods.make("gaussian", 5 * jnp.arctanh(logits / 5))  # undoes the soft clamp


@pytest.mark.parametrize("scale", [1, 2])
def test_conditioning_on_known_pixels_equals_the_joint_gaussian(scale):
    """log p(y | z) and E[x | y, z] at known pixels equal those of the joint Gaussian with full
    matrices, in which the errors of a block's pixels are correlated."""
    rng = np.random.default_rng(0)
    mean, spread = rng.uniform(0.3, 0.7, (1, 4, 4, 1)), rng.uniform(0.1, 0.2, (1, 4, 4, 1))
    y = rng.uniform(0.4, 0.6, (1, 4 // scale, 4 // scale, 1))
    known = (rng.random(y.shape) < 0.7).astype(np.float32)
    variance = np.full((1, 1, 1, 1), 0.01)
    observed = Observed(y, known, variance, scale)
    pixels = np.eye(16).reshape(16, 4, 4, 1)
    rows = np.asarray(shrink(pixels, scale)).reshape(16, -1).T[known.ravel() > 0]
    together = rows.T @ rows > 0 if scale > 1 else np.eye(16)  # pixels of one block
    covariance = np.outer(spread, spread) * together
    total = rows @ covariance @ rows.T + 0.01 * np.eye(len(rows))
    difference = y.ravel()[known.ravel() > 0] - rows @ mean.ravel()
    expected = mean.ravel() + covariance @ rows.T @ np.linalg.solve(total, difference)
    density, found = compiled(
        lambda: (
            observed.log_prob(gaussian_pixels(mean, spread)),
            observed.restore(gaussian_pixels(mean, spread)).ravel(),
        )
    )
    np.testing.assert_allclose(rows @ found, rows @ expected, atol=1e-5)
    quadratic = difference @ np.linalg.solve(total, difference)
    expected = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * total)[1])
    np.testing.assert_allclose(density, expected, rtol=1e-4)


@pytest.mark.parametrize("decay", [0.9, 1.0])
def test_unknown_pixels_are_means_of_their_neighbours(decay):
    rng = np.random.default_rng(0)
    values, known = rng.random((2, 5, 5, 3)), rng.random((2, 5, 5, 1)) < 0.5
    filled = np.asarray(smooth.fill(values, known, decay, 300))
    wide = np.pad(filled, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    around = wide[:, :-2, 1:-1], wide[:, 2:, 1:-1], wide[:, 1:-1, :-2], wide[:, 1:-1, 2:]
    np.testing.assert_allclose(filled, np.where(known, values, decay * sum(around) / 4), atol=1e-5)


def test_the_error_at_known_pixels_is_corrected_at_unknown_ones():
    """If the decoder's mean is too dark at known pixels, it is also corrected at unknown ones and
    within blocks."""
    mean = np.full((1, 8, 8, 1), 0.4)
    mean[:, 3:5] += 0.1

    def restore(observed):
        return compiled(lambda: observed.restore(gaussian_pixels(mean, np.full_like(mean, 0.1))))

    known = np.ones_like(mean)
    known[:, 2:6, 2:6] = 0
    zero = np.zeros((1, 1, 1, 1))
    found = restore(Observed((mean + 0.2) * known, known, zero, exact=True))
    assert np.abs(found - mean - 0.2).max() < 0.06  # the correction decays
    ramp = mean + np.linspace(-0.1, 0.1, 8)[:, None]
    found = restore(Observed(shrink(ramp, 4), np.ones((1, 2, 2, 1)), zero, 4))
    assert np.abs(found - ramp).max() < 0.04 < np.abs(mean - ramp).max()


def test_known_pixels_have_the_probability_of_the_likelihood():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 8, 8, 10)).astype(np.float32)
    x = np.round(255 * rng.random((2, 4, 4, 3))) / 255
    known = np.ones((2, 4, 4, 1))
    known[:, 2:] = 0
    observed = Observed(x, known, np.zeros((2, 1, 1, 1)), exact=True)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))

    def both():
        pixels = likelihoods.make("logistic_mixture", jnp.asarray(logits), padding=2)
        return observed.log_prob(pixels), pixels.log_prob_pixels(padded)[:, 2:4, 2:6].sum((1, 2))

    found, expected = compiled(both)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "params"), [("bernoulli", 1), ("gaussian", 2), ("logistic_mixture", 30)]
)
def test_the_moments_of_a_likelihood_equal_those_of_its_samples(name, params):
    logits = np.random.default_rng(0).normal(size=(1, 3, 3, params)) * 0.3
    if name == "gaussian":
        logits[..., 1] -= 1.5  # narrow, so that hardly anything is clipped
    if name == "logistic_mixture":
        logits[..., [*range(6, 9), *range(15, 18), *range(24, 27)]] -= 2.0

    def draw():
        pixels = likelihoods.make(name, jnp.asarray(logits, jnp.float32), padding=0)
        keys = jax.random.split(jax.random.key(0), 4000)
        return jax.vmap(pixels.sample)(keys), *pixels.moments()

    draws, mean, variance = map(np.asarray, compiled(draw))
    assert np.abs(draws.mean(0) - mean).max() < 0.03
    np.testing.assert_allclose(draws.std(0), np.sqrt(variance), rtol=0.15)


def test_a_source_between_prior_and_posterior_mixes_both_draws(run, images):
    noise, ones = run.draw_noise(5), np.ones(2)
    prepared = run.prepare(images)
    prior, mixed, posterior = (
        run.compose(np.full(2, source), ones, images=prepared, latents=noise)[1][0]
        for source in (0.0, 0.25, 1.0)
    )
    assert np.abs(posterior - prior).max() > 0.1
    np.testing.assert_allclose(mixed, 0.75 * prior + 0.25 * posterior, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_known_pixels_are_kept_and_others_are_drawn(run, images, method):
    unknown = np.where(HALF[..., None], images, np.nan)
    best, found = api.restore(run, unknown, mask=HALF, method=method, **CHEAP)
    np.testing.assert_allclose(best[:, :, :8], images[:, :, :8], atol=1e-6)
    assert found.shape == (5, 2, 16, 16, 1) and found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found[:, 0, :, :8], images[:, :, :8], atol=1e-6)
    assert np.abs(found[:, 0] - found[:, 1])[:, :, 8:].max() > 0.01
    options = {"mask": HALF, "method": method, **CHEAP}
    few = run.restore(images[:2], **options)
    np.testing.assert_allclose(few.best, best[:2], atol=1e-4)
    np.testing.assert_allclose(few.samples, found[:2], atol=1e-4)
    other = run.restore(images, seed=1, **options).samples
    assert np.abs(other - found)[:, :, :, 8:].max() > 0.01


def test_without_contrast_the_best_image_is_the_plain_restoration():
    values = np.stack([np.full((8, 8, 1), 0.5), np.indices((8, 8)).sum(0)[..., None] % 2])
    known = np.ones((2, 8, 8, 1))
    contrast = baselines.contrast(Observed(values, known, np.zeros((2, 1, 1, 1)), exact=True))
    np.testing.assert_allclose(contrast, [0, 1])
    plain, other = np.random.default_rng(0).random((2, 2, 8, 8, 1))
    best = lean(other, plain, np.array([0, FAINT**2]))
    np.testing.assert_allclose(best, [plain[0], (plain[1] + other[1]) / 2])


def test_mixing_with_only_the_prior_ignores_the_encoder(run, images):
    options = {"method": "mix", "mask": HALF, **CHEAP}
    pair = [0.45 + 0.1 * x for x in (images, 1 - images)]
    # Where nothing is clipped, only the propagated errors differ.
    known = np.broadcast_to(HALF[..., None], images.shape)
    carried = smooth.fill((pair[0] - pair[1]) * known, known, DECAY, REACH)[:, None, :, 8:]
    found = [run.restore(x, alpha=1.0, **options).samples[:, :, :, 8:] for x in pair]
    inside = np.abs(np.stack(found) - 0.5).max(0) < 0.5
    assert inside.mean() > 0.5
    np.testing.assert_allclose(np.where(inside, found[0] - found[1] - carried, 0), 0, atol=1e-4)
    found = [run.restore(x, alpha=[1.0, 0.0], **options).samples[:, :, :, 8:] for x in pair]
    assert np.abs(np.where(inside, found[0] - found[1] - carried, 0)).max() > 0.01


def test_noise_is_removed_from_images_of_the_model(run, images):
    """The model can separate noise from samples of its own prior."""
    prepared, noise = run.prepare(images), run.draw_noise(5, seed=7)
    images = run.compose(np.full(2, PRIOR), np.ones(2), images=prepared, latents=noise)[0]
    noisy = degrade(images, noise=0.5)
    options = {"noise": 0.5, "num_samples": 1}
    long, short = (run.restore(noisy, steps=n, **options).best for n in (60, 1))
    gain = [
        baselines.psnr(x, images).mean() - baselines.psnr(noisy, images).mean()
        for x in (short, long)
    ]
    assert gain[1] > 3 and gain[1] > gain[0] + 1, gain


def test_a_restored_image_has_the_given_low_resolution(run, images):
    small = np.asarray(shrink(images, 4))
    found = run.restore(small, scale=4, method="mix", **CHEAP).samples
    # Where nothing is clipped to [0, 1], the means over blocks are those that were given.
    inside = np.asarray(shrink(((found[:, 0] > 0) & (found[:, 0] < 1)).astype(float), 4)) == 1
    assert inside.any()
    means = np.asarray(shrink(found[:, 0], 4))
    np.testing.assert_allclose(means[inside], small[inside], atol=0.01)


def test_plain_restorations_equal_known_solutions():
    image = np.linspace(0, 1, 16)[None, :, None, None] * np.ones((1, 16, 16, 1))
    known = np.ones((1, 16, 16, 1), bool)
    known[:, 4:12, 4:12] = False
    smooth = baselines.fill_smooth(np.where(known, image, 0), known)
    np.testing.assert_allclose(smooth, image, atol=1e-3)  # a ramp solves Laplace's equation
    mean = baselines.fill_mean(np.where(known, image, 0), known)
    np.testing.assert_allclose(mean[:, 4:12, 4:12], 0.5, atol=1e-6)
    assert baselines.bicubic(image[:, ::2, ::2], 2).shape == image.shape
    assert baselines.psnr(image + 0.1, image) == pytest.approx(20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the images are fully known"),
        ({"mask": np.ones((8, 8))}, r"mask must be of shape \(16, 16\) or \(5, 16, 16\), not"),
        ({"mask": np.ones((3, 16, 16))}, "mask must be of shape"),
        ({"mask": np.full((16, 16), 255)}, "mask must be 1 for each known"),
        ({"mask": np.zeros((16, 16))}, "at least one pixel of each image"),
        ({"scale": 3}, "scale must divide 16"),
        ({"scale": 0}, "scale must divide 16"),
        ({"scale": 2}, r"images must be of shape \(N, 8, 8, 1\), not \(5, 16, 16, 1\)"),
        ({"noise": -1.0}, "noise must be a standard deviation"),
        ({"noise": np.nan}, "noise must be a standard deviation"),
        ({"noise": 0.1, "method": "guess"}, "unknown method 'guess'; known: mix, optimize"),
        ({"noise": 0.1, "num_samples": 0}, "num_samples must be at least 1"),
        ({"noise": 0.1, "steps": 0}, "steps must be from 1 to"),
        ({"noise": 0.1, "alpha": 0.5}, "'optimize' has no alpha, only learning_rate, steps"),
        ({"noise": 0.1, "method": "mix", "alpha": 1.5}, "alpha must be from 0 to 1, not 1.5"),
        ({"noise": 0.1, "method": "mix", "alpha": [0, 0, 0]}, "alpha: 3 values for 2 scale"),
        ({"noise": 0.1, "learning_rate": np.inf}, "learning_rate must be from 0 to 1"),
        ({"noise": 0.1, "temperature": [1, 1]}, "temperature must be one number"),
    ],
)
def test_invalid_options_are_errors(run, images, options, message):
    with pytest.raises(ValueError, match=message):
        run.restore(images, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the images are fully known"),
        ({"mask": np.ones((16, 16))}, "the images are fully known"),
        ({"mask": np.ones((8, 8))}, r"mask must be of shape \(16, 16\) or \(5, 16, 16\), not"),
        ({"mask": np.ones((16, 16)), "scale": 2}, r"mask must be of shape \(8, 8\)"),
        ({"mask": np.zeros((16, 16))}, "at least one pixel of each image"),
        ({"scale": 3}, "scale must divide 16"),
        ({"noise": -0.1}, "noise must be a standard deviation"),
        ({"noise": np.nan}, "noise must be a standard deviation"),
    ],
)
def test_invalid_options_for_whole_images_are_errors_before_writing(
    run, images, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        results.restore_run(run, images, tmp_path / "out", whole=True, **options)
    assert not (tmp_path / "out").exists()


def test_invalid_images_are_errors(run, images):
    with pytest.raises(ValueError, match="some values are not finite"):
        run.restore(np.where(HALF[..., None], np.nan, images), mask=HALF)
    with pytest.raises(ValueError, match="divide by 255"):
        run.restore(255 * images, mask=HALF)
    with pytest.raises(ValueError, match="not finite"):
        run.restore(np.where(images > 0, np.inf, images), noise=0.1)
    observe(images + 7, run.experiment.data, noise=0.1)  # noise has no bounds


def test_the_command_writes_its_files(run, images, tmp_path):
    options = {"mask": HALF, "method": "mix", "num_samples": 2, "settings": {"steps": 3}}
    measured = results.restore_run(run, images, tmp_path, whole=True, **options)
    with np.load(tmp_path / "restored.npz") as file:
        assert file["samples"].shape == (5, 2, 16, 16, 1)
        assert file["images"].shape == (5, 16, 16, 1)
        assert file["psnr_restored"].mean() == pytest.approx(measured["restored"])
    with Image.open(tmp_path / "restored.png") as picture:
        width, height = picture.size
        assert width / height == 6 / 5  # image, known, plain, mean, two samples
    with pytest.raises(ValueError, match="holds another result: seed is 0"):
        results.restore_run(run, images, tmp_path, whole=True, seed=1, **options)


def test_masks_are_made_by_name_or_read_from_files(tmp_path):
    center = masks.load("center", 16, 3)
    assert center.shape == (16, 16) and (~center).sum() == 64 and not center[7, 7]
    assert masks.load("half", 16, 3)[:, :8].all() and not masks.load("half", 16, 3)[:, 8:].any()
    random = masks.load("random", 16, 3, seed=1)
    assert random.shape == (3, 16, 16) and 0.4 < random.mean() < 0.6
    Image.fromarray(np.uint8(255 * HALF)).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", HALF)
    for name in ("mask.png", "mask.npy"):
        np.testing.assert_array_equal(masks.load(str(tmp_path / name), 16, 3), HALF)
    with pytest.raises(ValueError, match="mask must be one of center, half, random, .npz"):
        masks.load("middle", 16, 3)
    with pytest.raises(ValueError, match="there is no file"):
        masks.load(str(tmp_path / "absent.png"), 16, 3)


def test_the_settings_of_a_method_are_completed_with_defaults(run):
    hierarchy = run.experiment.model.hierarchy
    chosen = check_settings("mix", {"alpha": [0.0, 0.8], "steps": None}, hierarchy)
    np.testing.assert_allclose(chosen["shares"], [1, 0.2], rtol=1e-6)
    assert chosen["steps"] == METHODS["mix"]["steps"]


def test_shrinking_reverses_growing():
    small = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(shrink(grow(jnp.asarray(small), 3), 3), small, rtol=1e-6)
