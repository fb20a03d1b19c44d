"""Rate and distortion by the number of groups from the posterior; both ends equal known values."""

import jax
import numpy as np
import pytest

from nvae_jax import frechet, rate_distortion
from nvae_jax.data import pipeline
from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.noise import image_keys, latent_noise

COUNT = 11  # more than one batch, and no multiple of its size


@pytest.fixture(scope="module")
def points(run):
    return rate_distortion.measure(run, [1.0, 2.0, 4.0, 8.0], max_examples=COUNT, seed=3)


@pytest.fixture(scope="module")
def images(run):
    batches = pipeline.eval_batches(run.experiment.data, split="test", batch_size=COUNT, seed=3)
    return next(batches)["image"]


def test_with_no_group_from_the_posterior_the_distortion_is_that_of_samples(run, points, images):
    samples = run.sample(COUNT, seed=3)
    rmse = np.sqrt(np.mean((samples - images) ** 2))
    np.testing.assert_allclose(points[0]["rmse"], rmse, rtol=1e-5)
    assert (points[0]["rate"], points[0]["whole_scales"]) == (0.0, 0)


def test_with_all_groups_from_the_posterior_the_distortion_is_that_of_reconstructions(
    run, points, images
):
    model, key = run.experiment.model, jax.random.key(3)
    noise = latent_noise(model, image_keys(key, np.arange(COUNT)))
    out = jax.jit(model.apply)(run.variables, images, noise=noise)
    expected = -run.experiment.likelihood(out.logits).log_prob(images).mean()
    np.testing.assert_allclose(points[-1]["reconstruction"], expected, rtol=1e-5)
    assert points[-1]["rate"] == 15.0
    np.testing.assert_allclose(points[-1]["rate_bits_per_dim"], 15 / np.log(2) / 256)


def test_the_points_have_their_groups_scales_and_rates(points):
    assert [p["groups"] for p in points] == [0, 1, 2, 3, 4]
    assert [p["whole_scales"] for p in points] == [0, None, 1, None, 2]
    assert [p["rate"] for p in points] == [0, 1, 3, 7, 15]


def test_of_many_groups_only_some_are_measured():
    hierarchy = Hierarchy(
        image_size=64, process_blocks=1, num_scales=3, num_groups=20, latent_channels=2
    )
    stops = rate_distortion.group_counts(hierarchy)
    assert {0, 20, 40, 60} <= set(stops) and len(stops) < 17


def test_large_pictures_are_reduced_for_comparison():
    assert rate_distortion.shrink(np.zeros((2, 40, 16, 3))).shape == (2, 32, 16, 3)


def test_the_frechet_distance_of_gaussians_equals_its_closed_form():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 100_000, 3))
    other = other * [1, 2, 3] + [0, 0, 2]
    one, other = (images.reshape(-1, 3, 1, 1) for images in (one, other))
    axes = frechet.principal_axes(other[:500], 3)
    # For diagonal covariances it is the squared difference of means plus that of deviations.
    distance = frechet.picture_distance(one, other, axes)
    np.testing.assert_allclose(distance, 4 + 1 + 4, rtol=0.02)
