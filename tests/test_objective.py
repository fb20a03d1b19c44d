import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax import objective
from nvae_jax.models.hierarchy import Hierarchy

SETTINGS = objective.ObjectiveSettings(num_steps=1000, spectral=1e-2, spectral_init=1.0)


@pytest.mark.parametrize(
    ("step", "beta"), [(0, 1e-4), (30, (30 - 0.1) / 300), (150, 149.9 / 300), (301, 1), (999, 1)]
)
def test_the_kl_weight_follows_the_warm_up(step, beta):
    np.testing.assert_allclose(objective.kl_weight(step, SETTINGS), beta, rtol=1e-6)


@pytest.mark.parametrize(("beta", "weight"), [(0.0, 1.0), (0.5, 0.1), (1.0, 0.01)])
def test_regularizer_weight_is_annealed_geometrically(beta, weight):
    np.testing.assert_allclose(objective.regularizer_weight(beta, SETTINGS), weight, rtol=1e-5)


def test_regularizer_weight_is_constant_without_a_start():
    settings = objective.ObjectiveSettings(num_steps=10, spectral=0.3)
    np.testing.assert_allclose(objective.regularizer_weight(0.2, settings), 0.3, rtol=1e-6)


def test_alpha_depends_on_the_size_and_number_of_groups():
    hierarchy = Hierarchy(32, 2, 4, 4, 2, adaptive_groups=True)  # groups (4, 2), fine to coarse
    raw = np.array([1 / 2] * 2 + [4 / 4] * 4)
    np.testing.assert_allclose(objective.balance_alpha(hierarchy), raw / raw.min())


def test_balancing_ends_with_the_warm_up_and_has_no_gradient():
    kl = jnp.array([[1.0, 3.0], [2.0, 4.0]])
    alpha = jnp.array([1.0, 2.0])
    raw = np.array([1.51, 3.51 / 2])
    gamma = raw / raw.mean()
    weighted, got = objective.balanced_kl(kl, alpha, jnp.array(0.5))
    np.testing.assert_allclose(got, gamma, rtol=1e-6)
    np.testing.assert_allclose(weighted, 0.5 * np.asarray(kl) @ gamma, rtol=1e-6)
    gradient = jax.grad(lambda k: objective.balanced_kl(k, alpha, jnp.array(0.5))[0].sum())(kl)
    np.testing.assert_allclose(gradient, np.tile(0.5 * gamma, (2, 1)), rtol=1e-6)
    weighted, got = objective.balanced_kl(kl, alpha, jnp.array(1.0))
    np.testing.assert_allclose(got, 1.0)
    np.testing.assert_allclose(weighted, kl.sum(1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kl_anneal": 1.5}, "objective.kl_anneal must be in"),
        ({"spectral": -1.0}, "objective.spectral is negative"),
        ({"spectral": 0.0, "spectral_init": 1.0}, "objective.spectral must be positive"),
    ],
)
def test_invalid_settings_are_errors_that_name_them(keys, message):
    with pytest.raises(ValueError, match=message):
        objective.ObjectiveSettings(num_steps=10, **keys)
