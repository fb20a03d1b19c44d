"""A local run with which runs in buckets are compared, and the comparison."""

import json

import jax
import numpy as np
import pytest

from nvae_jax import build, reporting, train
from nvae_jax.checkpoint_reader import CheckpointReader
from tests.conftest import tiny_config

STEPS = 9


def config_for():
    """The smallest model: in a bucket every array is at least one object, and every write a
    request."""
    small = {"num_scales": 1, "num_groups": 1, "latent_channels": 2, "unroll": 1}
    small |= {"encoder_width": 4, "decoder_width": 4, "decoder_cell": "residual"}
    return tiny_config(
        model=small,
        train={"num_steps": STEPS, "batch_size": 16},
        checkpoint={"every_steps": 4},
        log={"every_steps": 1, "images_every_steps": 0, "num_images": 4},
    )


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A run in a folder, without interruption."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train.train(config_for(), workdir)
    return workdir


def rows(folder):
    """The rows of metrics.jsonl, without the columns that depend on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = reporting.TIMES
    return [{name: value for name, value in row.items() if name not in timed} for row in found]


def saved(workdir):
    """The newest checkpoint, with the position in the data."""
    checkpoints = CheckpointReader(workdir)
    return checkpoints.restore(build.build(config_for()).abstract_state())


def assert_same_run(one, other):
    """Asserts that two run directories have the same rows and, bit for bit, the same last state."""
    assert rows(one) == rows(other)
    one, other = saved(one), saved(other)
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert one[1] == other[1]
