"""The update: gradient accumulation over micro-batches, the moving average, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax import build, steps
from nvae_jax.optim import OptimizerSettings, adamax
from tests.conftest import tiny_config


def test_micro_batches_average_gradients_and_pass_on_statistics():
    weights = jnp.asarray([1.0, -2.0, 3.0])

    def gradients(batch_stats, spectral, images, key):
        del key
        mean = images.mean(0)
        return weights * mean, ({"loss": mean.sum()}, 0.5 * batch_stats + mean, spectral + 1)

    images = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
    accumulate = steps._accumulate(gradients, 3)
    zeros = jnp.zeros(3)
    grads, (metrics, batch_stats, rounds) = accumulate(
        zeros, jnp.zeros(()), images, jax.random.key(0)
    )
    np.testing.assert_allclose(grads, weights * images.mean(0), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], images.mean(0).sum(), rtol=1e-5)
    parts = [images[i::3].mean(0) for i in range(3)]
    np.testing.assert_allclose(batch_stats, parts[0] / 4 + parts[1] / 2 + parts[2], rtol=1e-5)
    assert rounds == 3


def test_a_step_with_micro_batches_updates_the_moving_average():
    train = {"num_steps": 6, "batch_size": 16, "accumulation_steps": 2, "ema_decay": 0.15}
    experiment = build.build(
        tiny_config(model={"unroll": 1, "num_scales": 1, "norm_groups": 4}, train=train)
    )
    images = np.random.default_rng(0).random((16, *experiment.image_shape)) > 0.5
    images = images.astype(np.float32)
    state, update = experiment.create_state(images), experiment.train_step()
    expected = jax.tree.map(np.asarray, state.trained)
    for decay in (0.1, 0.15):  # min(0.15, (1 + step) / (10 + step))
        state, metrics = update(state, images)
        trained = jax.tree.map(np.asarray, state.trained)
        expected = jax.tree.map(lambda e, t, d=decay: d * e + (1 - d) * t, expected, trained)
    assert (
        int(state.step) == 2 and np.isfinite(metrics["loss"]) and metrics["kl_group"].shape == (2,)
    )
    assert state.variables == state.average and "average" in state.stored()
    mine, theirs = jax.tree.leaves(state.variables), jax.tree.leaves(expected)
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_without_ema_decay_no_average_is_kept(tiny):
    _, state, _ = tiny
    assert state.variables == state.trained and "average" not in state.stored()


def test_gradients_are_clipped_by_their_global_norm():
    settings = OptimizerSettings(num_steps=10, weight_decay=0.0, gradient_clip=1.0, epsilon=1e-12)
    params = {"a": jnp.asarray([1.0]), "b": jnp.asarray([1.0])}
    grads = {"a": jnp.asarray([30.0]), "b": jnp.asarray([40.0])}
    clipped = adamax(settings, 1.0)
    _, state = clipped.update(grads, clipped.init(params), params)
    moments = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim])
    np.testing.assert_allclose(sorted(moments), [0.06, 0.08, 0.6, 0.8], rtol=1e-5)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "ema_decay", 1.0, "train.ema_decay must be a number from 0 to 0.99999994"),
        ("train", "ema_decay", -0.1, "train.ema_decay must be a number from 0 to 0.99999994"),
        ("train", "accumulation_steps", 0, "train.accumulation_steps must be an integer from 1 to"),
        ("optimizer", "gradient_clip", -1.0, "optimizer.gradient_clip must be a number from 0 to"),
    ],
)
def test_invalid_settings_are_errors_that_name_them(section, key, value, message):
    config = tiny_config()
    config[section][key] = value
    with pytest.raises(ValueError, match=message):
        build.build(config)
