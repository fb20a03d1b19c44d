"""A trained model is loaded on the available devices; only its variables are read, and nothing
changes them."""

import json
import shutil
import types

import jax
import numpy as np
import pytest

from nvae_jax import loading, run_directory
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.checkpoint_reader import CheckpointReader

SAVING = """
import json, sys
import jax, numpy as np
from nvae_jax import build, run_directory
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.interop.conversion import fresh_state
from nvae_jax.models.initialize import initialize
from tests.conftest import tiny_config

config = tiny_config(mesh={"data": 1, "fsdp": 2}, model={"unroll": 1}, train={"ema_decay": 0.9})
experiment = build.build(config)
zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), experiment.abstract_state())
numbers = np.random.default_rng(0)
average = jax.tree.map(lambda a: numbers.normal(size=a.shape).astype(a.dtype), zeros.average)
places = jax.tree.map(lambda a: a.sharding, experiment.abstract_state())
state = jax.device_put(zeros.replace(average=average), places)
with run_directory.open_for_training(sys.argv[1], config), Checkpoints(sys.argv[1]) as saved:
    saved.save(state, {"step": 0})
print(sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.average)))
"""


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def copied(tmp_path, workdir):
    """A function that copies the tiny run and changes its config."""

    def copy(**sections):
        folder = tmp_path / "run"
        shutil.copytree(workdir, folder)
        config = json.loads((folder / "config.json").read_text())
        for section, values in sections.items():
            config[section].update(values)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


@pytest.mark.parametrize("mesh", [{"data": 24}, {"data": 2, "fsdp": 4}, {"data": 1, "fsdp": -1}])
def test_a_run_trained_on_many_devices_is_loaded_on_those_available(copied, run, mesh):
    folder = copied(mesh=mesh, train={"batch_size": 25}, model={"implementation": "native"})
    experiment, state = loading.load_run(folder)
    assert experiment.mesh.size == jax.device_count()
    same(state.variables, run.state.variables)
    # The model is the same; only the mesh differs.
    assert experiment.model == run.experiment.model


def test_sharded_arrays_are_loaded_whole(run_program, tmp_path):
    assert run_program(SAVING, 2, str(tmp_path / "run")) > 0
    _, state = loading.load_run(tmp_path / "run")
    numbers = np.random.default_rng(0)
    for array in jax.tree.leaves(state.variables):
        np.testing.assert_array_equal(array, numbers.normal(size=array.shape).astype(array.dtype))


@pytest.mark.parametrize("averaged", [False, True])
def test_only_the_variables_are_read(tmp_path, tiny_run_config, random_variables, averaged):
    """The other parts of a checkpoint can be missing or damaged."""
    config = tiny_run_config.copy_and_resolve_references()
    config.train.ema_decay = 0.9 if averaged else 0.0
    variables = random_variables(config)
    stored = {"average": variables} if averaged else variables
    bare = types.SimpleNamespace(step=3, stored=lambda: jax.tree.map(jax.numpy.asarray, stored))
    with run_directory.open_for_training(tmp_path, config), Checkpoints(tmp_path) as saved:
        saved.save(bare, {"step": 3})
    _, state = loading.load_run(tmp_path)
    assert state.step == 3
    same(state.variables, variables)


def test_loaded_variables_cannot_be_changed(run):
    before = run.state.fingerprint
    variables = run.state.variables
    variables["batch_stats"] = None
    variables["params"].clear()
    assert run.state.variables["params"] and run.state.variables["batch_stats"] is not None
    with pytest.raises(AttributeError):
        run.state.collections = {}
    # A fingerprint depends only on the content of the arrays.
    again = loading.load_run(run.workdir)[1]
    assert again.fingerprint == before
    moved = jax.tree.map(lambda a: a + 1e-3, again.collections)
    assert type(again)(again.step, moved).fingerprint != before


def test_a_model_of_other_shapes_is_refused(run, workdir):
    longer = lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype, sharding=a.sharding)  # noqa: E731
    wanted = jax.tree.map(longer, run.experiment.abstract_variables())
    checkpoints = CheckpointReader(workdir)
    with pytest.raises(ValueError, match="can be read .step 0"):
        checkpoints.restore_snapshot(wanted)
