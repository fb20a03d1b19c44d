"""A run directory of a tiny random model of digits, for tests that use a trained model."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

from nvae_jax import api, run_directory
from nvae_jax.build import build
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.configs import digits
from nvae_jax.interop.conversion import fresh_state
from nvae_jax.interop.torch_checkpoint import shapes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_run_config():
    """16×16 binarised digits, 2 scales of 2 groups, width 4; it compiles fast."""
    config = digits.get_config()
    config.model.update(process_blocks=1, num_scales=2, num_groups=2, latent_channels=2)
    config.model.update(encoder_width=4, decoder_width=4, decoder_cell="residual", unroll=1)
    config.eval.update(recalibration_passes=3, recalibration_batch_size=4, batch_size=8)
    return config


@pytest.fixture(scope="session")
def make_run(tiny_run_config):
    """A function: (folder, variables=None, **sections) to the run directory of a tiny model, at
    step 0. Sections change keys of its config; its variables are random where none are given."""

    def make(folder, variables=None, **sections):
        config = tiny_run_config.copy_and_resolve_references()
        for section, values in sections.items():
            config[section].update(values)
        state = fresh_state(build(config), variables or random_variables_of(config), 0)
        if config.train.ema_decay:
            state = state.replace(average=jax.tree.map(jax.numpy.copy, state.trained))
        with run_directory.open_for_training(folder, config), Checkpoints(folder) as saved:
            saved.save(state, {"step": 0, "num_examples": 1500})
        return folder

    return make


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, make_run):
    """The run directory of the tiny model."""
    return make_run(tmp_path_factory.mktemp("runs") / "tiny")


def random_variables_of(config):
    """Random variables of a model, including its statistics, so that all of them matter."""
    rng, flat = np.random.default_rng(0), {}
    for path, shape in shapes(config).items():
        draw = rng.normal(size=shape).astype(np.float32)
        spread = {"kernel": 0.3, "scale": 0.2, "bias": 0.3, "mean": 0.3, "log_scale": 0.1}
        # Heads far from zero would make KLs that float32 cannot tell apart.
        timid = {"prior_head", "posterior_head"} & set(path)
        centre = {"scale": 1.0, "log_scale": -1.0 if timid else 0.5}.get(path[-1], 0.0)
        flat[path] = centre + spread.get(path[-1], 0.3) * draw
        if path[-1] == "var":
            flat[path] = 0.5 + rng.random(shape, np.float32)
    return traverse_util.unflatten_dict(flat)


@pytest.fixture(scope="session")
def random_variables():
    """A function: config to random variables of its model."""
    return random_variables_of


@pytest.fixture(scope="session")
def run(workdir):
    """The loaded run."""
    return api.load(workdir)


@pytest.fixture(scope="session")
def small_run(make_run, tmp_path_factory):
    """A run with one group per scale, whose programs compile in half the time."""
    return api.load(make_run(tmp_path_factory.mktemp("runs") / "small", model={"num_groups": 1}))


@pytest.fixture(scope="session")
def images():
    """Five binary images (5, 16, 16, 1)."""
    return (np.random.default_rng(0).random((5, 16, 16, 1)) > 0.5).astype(np.float32)
