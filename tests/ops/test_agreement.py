"""Training gives the same losses and statistics with each implementation of the operations."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from nvae_jax import build
from nvae_jax.ops.portable import Portable
from tests.conftest import tiny_config
from tests.ops.implementations import CPU, GPU, NATIVE

STEPS = 50


def train(ops):
    """The losses and the norms of the gradients of `STEPS` steps on random images, from the same
    state; the final statistics."""
    config = tiny_config(
        model={
            "num_scales": 1,
            "num_groups": 2,
            "encoder_cell": "residual_elu",  # the decoder has cells with batch norm
            "encoder_width": 4,
            "decoder_width": 4,
            "precision": "highest",
        },
        optimizer={"warmup_steps": 0},
        train={"batch_size": 4, "num_steps": STEPS},
    )
    experiment = build.build(config, jax.devices()[:1])
    experiment = dataclasses.replace(experiment, model=experiment.model.clone(ops=ops))
    images = np.random.default_rng(0).random((STEPS, 4, *experiment.image_shape)) > 0.5
    state, step = experiment.create_state(images[0].astype(np.float32)), experiment.train_step()
    found = []
    for batch in images.astype(np.float32):
        state, metrics = step(state, batch)
        found.append((metrics["loss"], metrics["gradient_norm"]))
    return *np.transpose(found), jax.tree.map(np.asarray, state.batch_stats)


@pytest.fixture(scope="module")
def expected():
    return train(Portable())


@pytest.mark.parametrize("ops", [CPU, NATIVE, GPU])
def test_all_implementations_train_with_the_same_losses_and_statistics(ops, expected):
    """The tolerances are such that an error of 2% in the gradient of one operation is found."""
    losses, norms, statistics = train(ops)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    np.testing.assert_allclose(norms, expected[1], rtol=1e-4)
    chex.assert_trees_all_close(statistics, expected[2], rtol=1e-4, atol=1e-4)
