import shutil

import pytest

from nvae_jax import resume
from nvae_jax.checkpoint import Checkpoints


@pytest.fixture
def restore(tmp_path, tiny):
    """A function that calls `resume.restore` for the run in `tmp_path`."""

    def call(**options):
        with Checkpoints(tmp_path) as checkpoints:
            return resume.restore(tmp_path, checkpoints, tiny[0].abstract_state(), **options)

    return call


@pytest.fixture
def saved(tmp_path, tiny):
    """A run with a checkpoint of step 0."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(tiny[1], {"step": 0})


def test_a_new_run_starts(restore, tmp_path):
    assert restore() is None
    (tmp_path / "metrics.jsonl").touch()
    assert restore() is None


def test_a_run_that_lost_its_checkpoints_starts_anew_only_with_restart(restore, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="has metrics but no checkpoint"):
        restore()
    assert restore(restart=True) is None


def test_a_run_that_was_interrupted_before_its_first_checkpoint_starts_anew(
    restore, tmp_path, tiny
):
    restore()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert restore() is None
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(tiny[1], {"step": 0})
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ValueError, match="has metrics but no checkpoint"):
        restore()


def test_a_run_with_a_checkpoint_resumes_and_refuses_restart(restore, saved):
    assert restore()[1] == {"step": 0}
    with pytest.raises(ValueError, match="to start anew name a new folder"):
        restore(restart=True)


def test_a_run_with_only_damaged_checkpoints_starts_anew_only_with_restart(
    restore, saved, tmp_path
):
    (tmp_path / "checkpoints" / "0" / "data" / "metadata").unlink()
    with pytest.raises(ValueError, match="can be read .step 0: .*; --restart starts anew"):
        restore()
    assert restore(restart=True) is None


def test_an_interrupted_restart_over_damaged_checkpoints_starts_anew(restore, saved, tmp_path):
    (tmp_path / "checkpoints" / "0" / "data" / "metadata").unlink()
    restore(restart=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert restore() is None
