"""Training with each kind of operations: the same losses."""

import dataclasses

import jax
import numpy as np
import pytest

from nvae_jax import build
from nvae_jax.ops.portable import Portable
from tests.conftest import tiny_config
from tests.ops.implementations import CPU, GPU, NATIVE

STEPS = 50


def losses(ops):
    """Of `STEPS` steps on random images, from the same state."""
    config = tiny_config(
        model={
            "num_scales": 1,
            "num_groups": 2,
            "process_blocks": 2,
            "preprocess_cells": 1,
            "postprocess_cells": 1,
            "encoder_width": 4,
            "decoder_width": 4,
            "precision": "highest",
        },
        train={"batch_size": 4, "num_steps": STEPS},
    )
    experiment = build.build(config, jax.devices()[:1])
    experiment = dataclasses.replace(experiment, model=experiment.model.clone(ops=ops))
    images = np.random.default_rng(0).random((STEPS, 4, *experiment.image_shape)) > 0.5
    state, step = experiment.create_state(images[0].astype(np.float32)), experiment.train_step()
    found = []
    for batch in images.astype(np.float32):
        state, metrics = step(state, batch)
        found.append(metrics["loss"])
    return np.array(found)


@pytest.fixture(scope="module")
def expected():
    return losses(Portable())


@pytest.mark.parametrize("ops", [CPU, NATIVE, GPU])
def test_losses_over_many_steps(ops, expected):
    np.testing.assert_allclose(losses(ops), expected, rtol=1e-4)
