import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.models import layers


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_norm_of_an_effective_kernel_is_the_exponential_of_its_log_scale():
    kernel = layers.weight_norm([normal(3, 3, 2, 5)], [jnp.arange(5.0)])[0]
    np.testing.assert_allclose(layers.kernel_norm(kernel), np.exp(np.arange(5.0)), rtol=1e-4)


def test_a_convolution_equals_one_computed_by_hand():
    x, conv = normal(1, 4, 4, 2), layers.Conv(3, 3, stride=2)
    variables = conv.init(jax.random.key(1), x)
    y, params = conv.apply(variables, x), variables["params"]
    kernel = layers.weight_norm([params["kernel"]], [params["log_scale"]])[0]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # Output (i, j) is centred on input (2i, 2j), so there is one row of zeros before the image.
    by_hand = np.einsum("hwc,hwco->o", padded[0, 2:5, 0:3], kernel) + variables["params"]["bias"]
    np.testing.assert_allclose(y[0, 1, 0], by_hand, rtol=1e-5, atol=1e-6)
    assert y.shape == (1, 2, 2, 3)


def test_initial_weights_are_in_their_range_and_keep_the_norm_of_the_kernel():
    conv = layers.Conv(64, 3)
    params = conv.init(jax.random.key(0), normal(1, 4, 4, 8))["params"]
    limit = 1 / np.sqrt(72)
    assert 0.95 * limit < np.abs(params["kernel"]).max() <= limit
    assert 0.8 * limit < np.abs(params["bias"]).max() <= limit
    expected = np.log(layers.kernel_norm(params["kernel"]) + 0.01)
    np.testing.assert_allclose(params["log_scale"], expected, rtol=1e-6)


def test_data_dependent_initialization_gives_mean_0_and_deviation_one_fifth():
    x = 3.0 + 5.0 * normal(8, 6, 6, 4)
    conv = layers.Conv(6, 3, data_init=True)
    variables = conv.init(jax.random.key(0), x)
    y = np.asarray(conv.apply(variables, x))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(y.std((0, 1, 2)), 0.2, rtol=1e-2)


@pytest.mark.parametrize("copies", [1, 4])
def test_batch_norm_normalizes_with_batch_statistics_and_updates_the_running_ones(copies):
    x = normal(3, 4, 4, 2) + 7.0
    norm = layers.BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    y, updated = norm.apply(variables, x, True, copies, mutable=["batch_stats"])
    flat = np.repeat(x.reshape(-1, 2), copies, axis=0)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, rtol=1e-4)
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.05 * flat.mean(0), rtol=1e-5)
    unbiased = flat.var(0, ddof=1)
    np.testing.assert_allclose(stats["var"], 0.95 + 0.05 * unbiased, rtol=1e-5)


def test_batch_norm_uses_running_statistics_when_not_training():
    norm = layers.BatchNorm()
    stats = {"mean": jnp.array([1.0]), "var": jnp.array([4.0])}
    params = {"scale": jnp.array([3.0]), "bias": jnp.array([0.5])}
    x = jnp.full((1, 1, 1, 1), 2.0)
    y = norm.apply({"params": params, "batch_stats": stats}, x, False)
    np.testing.assert_allclose(y, 0.5 + 3.0 * (2.0 - 1.0) / np.sqrt(4.0 + 1e-5), rtol=1e-6)


def test_batch_norm_with_groups_normalizes_each_part_of_the_batch_alone():
    x = normal(6, 3, 3, 2) * 3 + 1
    apart, whole = layers.BatchNorm(groups=2), layers.BatchNorm()
    variables = whole.init(jax.random.key(0), x, True)
    y, updated = apart.apply(variables, x, True, mutable=["batch_stats"])
    halves = [whole.apply(variables, h, True, mutable=["batch_stats"]) for h in (x[:3], x[3:])]
    np.testing.assert_allclose(y, np.concatenate([h[0] for h in halves]), rtol=1e-5, atol=1e-5)
    for name in ("mean", "var"):
        expected = np.stack([h[1]["batch_stats"][name] for h in halves])
        np.testing.assert_allclose(updated["batch_stats"][name], expected, rtol=1e-5, atol=1e-6)


def test_bilinear_upsampling_aligns_corners():
    x = normal(1, 3, 5, 2)
    y = np.asarray(layers.upsample_bilinear(x))
    rows = np.linspace(0, 2, 6)
    columns = np.linspace(0, 4, 10)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            at = np.array([np.interp(row, np.arange(3), x[0, :, k, 0]) for k in range(5)])
            value = np.interp(column, np.arange(5), at)
            np.testing.assert_allclose(y[0, i, j, 0], value, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_bilinear_upsampling_needs_only_sums_of_neighbours():
    x = normal(1, 3, 5, 2)
    gradient = jax.grad(lambda x: layers.upsample_bilinear(x).sum())
    # The weights of each output sum to 1, so the gradient sums to the number of outputs.
    np.testing.assert_allclose(gradient(x).sum(), 4 * x.size, rtol=1e-5)
    text = jax.jit(gradient).lower(jnp.zeros((1, 3, 5, 2), jnp.bfloat16)).as_text()
    used = set(re.findall(r"stablehlo\.(\w+)", text))
    assert not used & {"dot_general", "convolution", "gather", "scatter"}, used


def test_nearest_upsampling_repeats_each_pixel():
    x = normal(2, 3, 2, 1)
    np.testing.assert_array_equal(layers.upsample_nearest(x), x.repeat(2, 1).repeat(2, 2))


def test_squeeze_and_excitation_has_a_sixteenth_of_the_channels_but_at_least_four():
    se = layers.SqueezeExcitation()
    for channels, hidden in ((16, 4), (128, 8)):
        x = normal(1, 2, 2, channels)
        params = se.init(jax.random.key(0), x, x)["params"]
        assert params["reduce"]["kernel"].shape == (channels, hidden)
