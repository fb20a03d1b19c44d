"""Noise by image, and temperatures by scale."""

import jax
import numpy as np
import pytest

from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.noise import group_temperatures, image_keys, latent_noise, parse_temperatures


def test_noise_of_an_image_does_not_depend_on_its_batch(run):
    model, key = run.experiment.model, jax.random.key(3)
    whole = latent_noise(model, image_keys(key, np.arange(6)))
    part = latent_noise(model, image_keys(key, np.arange(4, 6)))
    assert [n.shape[1:] for n in whole] == list(model.latent_shapes())
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[4:], other)
        assert len(np.unique(one)) == one.size


def test_a_temperature_for_each_scale_applies_to_its_groups():
    hierarchy = Hierarchy(32, 3, 4, 2, 1, adaptive_groups=True)  # groups 4, 2, 1, finest first
    np.testing.assert_allclose(group_temperatures(hierarchy, 0.5), [0.5] * 7)
    np.testing.assert_allclose(
        group_temperatures(hierarchy, [1.0, 0.5, 0.25]), [1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    )


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), [1.0, 1.0], [1, 1, 0]])
def test_invalid_temperatures_are_errors(bad):
    with pytest.raises(ValueError, match="temperature"):
        group_temperatures(Hierarchy(32, 3, 4, 2, 1), bad)


def test_texts_that_are_no_temperatures_are_errors():
    assert parse_temperatures(["1", "0.7"]) == [1.0, 0.7]
    for words in (["warm"], [], ["nan"], ["1", "inf"]):
        with pytest.raises(ValueError, match="must be numbers, not '"):
            parse_temperatures(words)
