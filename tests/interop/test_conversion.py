"""Published checkpoints become run directories, and back. Reading a file needs PyTorch."""

from pathlib import Path

import jax
import numpy as np
import pytest

from nvae_jax import build, evaluate, loading, run_directory, train
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.data.spec import DataError
from nvae_jax.interop import conversion, torch_checkpoint, torch_file
from nvae_jax.interop.arguments import export_args, export_operations


def trees_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_fresh_state_has_the_shapes_that_training_restores(small_config, small_variables):
    experiment = build.build(small_config)
    state = conversion.fresh_state(experiment, small_variables, 7)
    shapes = experiment.abstract_state()
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(state)] == [
        (a.shape, a.dtype) for a in jax.tree.leaves(shapes)
    ]
    counts = [int(a) for a in jax.tree.leaves(state.opt_state) if a.ndim == 0]
    assert sorted(counts) == [0, 7]  # the moments are fresh, the schedule is not


def test_without_data_the_position_is_computed_from_the_published_sizes(small_config):
    config = small_config.copy_and_resolve_references()
    config.data.dir = "/nowhere"
    assert conversion.data_state(config, 5) == {"step": 5, "num_examples": 60_000}


@pytest.fixture
def run(tmp_path, small_config, small_variables, mnist_dir):
    """A run directory of this project, at step 7."""
    workdir = tmp_path / "run"
    config = small_config.copy_and_resolve_references()
    config.data.dir = str(mnist_dir)
    state = conversion.fresh_state(build.build(config), small_variables, 7)
    with run_directory.open_for_training(workdir, config), Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, conversion.data_state(config, 7))
    return workdir


def test_an_exported_run_can_be_imported_and_resumed(
    monkeypatch, tmp_path, bucket, run, mnist_dir, small_variables
):
    """The exported file and the new run are in a bucket."""
    pytest.importorskip("torch")
    monkeypatch.setenv("HOME", str(tmp_path))
    file, again = bucket / "out.pt", bucket / "again"
    assert conversion.export_run(run, file) == 7
    assert conversion.convert_file(file, again, data_dir=str(mnist_dir)) == 7
    experiment, state = loading.load_run(again)
    trees_equal(state.variables, dict(small_variables))
    assert experiment.model == loading.load_run(run)[0].model
    # Twelve images in batches of four: 9 steps are 3 epochs, of which 2 are done.
    assert (experiment.loop.num_steps, experiment.loop.batch_size) == (10, 4)
    result = evaluate.evaluate_run(
        again,
        *loading.load_run(again),
        split="test",
        num_iw_samples=1,
        max_examples=4,
        batch_size=4,
        seed=0,
    )
    assert np.isfinite(result["nelbo"])
    with pytest.raises(ValueError, match="already holds a run"):
        conversion.convert_file(file, again)
    train.train(None, again)
    assert int(loading.load_run(again)[1].step) == 10


def test_a_converted_file_is_the_model_with_the_published_numbers(tmp_path, golden):
    """tests/test_golden.py compares the outputs of the same model with them."""
    pytest.importorskip("torch")
    file = Path(__file__).parents[1] / "golden" / f"{golden.name}.pt"
    if not file.exists():
        return  # one of the three has numbers only
    assert conversion.convert_file(file, tmp_path / "run", num_devices=2) == 77
    experiment, state = loading.load_run(tmp_path / "run")
    assert experiment.loop.batch_size == 2 * 200
    config, variables = torch_checkpoint.convert_state(golden.state, golden.args)
    trees_equal(state.variables, dict(variables))
    assert experiment.model == build.build_model(config)
    conversion.export_run(tmp_path / "run", tmp_path / "back.pt")
    there, back = torch_file.read(file), torch_file.read(tmp_path / "back.pt")
    assert (back.args, back.epoch, back.step) == (there.args, there.epoch, there.step)
    ignored = torch_checkpoint.IGNORED_SUFFIXES
    assert set(back.state) == {n for n in there.state if not n.endswith(ignored)}
    trees_equal(back.state, {n: there.state[n] for n in back.state})


def test_files_of_older_versions_of_the_published_code_are_read(
    tmp_path, small_config, small_variables
):
    pytest.importorskip("torch")
    state = torch_checkpoint.export_state(small_config, small_variables)
    state["stem.weight_normalized"] = np.ones((), np.float32)
    args = export_args(small_config)
    for name in ("ada_groups", "min_groups_per_scale", "num_mixture_dec"):
        del args[name]
    published = torch_file.PublishedFile(state, args, 1, 3)
    torch_file.write(tmp_path / "old.pt", published, export_operations(small_config))
    conversion.convert_file(tmp_path / "old.pt", tmp_path / "run")
    trees_equal(loading.load_run(tmp_path / "run")[1].variables, dict(small_variables))


def test_a_file_that_does_not_fit_leaves_nothing_behind(tmp_path, small_config, small_variables):
    pytest.importorskip("torch")
    state = torch_checkpoint.export_state(small_config, small_variables)
    del state["stem.weight"]
    published = torch_file.PublishedFile(state, export_args(small_config))
    torch_file.write(tmp_path / "torn.pt", published, {})
    with pytest.raises(ValueError, match="missing, first stem.weight"):
        conversion.convert_file(tmp_path / "torn.pt", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_on_other_data_is_refused(tmp_path, run, mnist_dir):
    for file in mnist_dir.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="is not in"):
        train.train(None, run)


def test_exporting_a_run_without_checkpoint_is_an_error(tmp_path, small_config):
    run_directory.save_config(tmp_path, small_config)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        conversion.export_run(tmp_path, tmp_path / "out.pt")
