import math

import jax
import numpy as np
import pytest

from nvae_jax.checkpoint import Checkpoints, parse_which


@pytest.fixture
def saved(tmp_path, tiny):
    """A folder with checkpoints of steps 1 and 2, and the abstract state."""
    experiment, state, _ = tiny
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state.replace(step=state.step + step), {"step": step})
    return tmp_path, experiment.abstract_state(), state


def test_everything_comes_back(saved):
    folder, abstract, state = saved
    with Checkpoints(folder, read_only=True) as checkpoints:
        restored, data_state = checkpoints.restore(abstract)
    assert data_state == {"step": 2} and int(restored.step) == 2
    same = restored.replace(step=state.step)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    assert jax.tree.map(lambda a: a.dtype, same) == jax.tree.map(lambda a: a.dtype, state)


def test_a_torn_checkpoint_gives_way_to_the_one_before(saved, caplog):
    folder, abstract, _ = saved
    files = [p for p in (folder / "checkpoints" / "2" / "state").rglob("*") if p.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with Checkpoints(folder, read_only=True) as checkpoints:
        restored, data_state = checkpoints.restore(abstract)
    assert data_state == {"step": 1} and int(restored.step) == 1
    assert "step 2" in caplog.text and "trying older" in caplog.text


def test_only_torn_ones_are_an_error(saved):
    folder, abstract, _ = saved
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with Checkpoints(folder, read_only=True) as checkpoints:
        with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
            checkpoints.restore(abstract)


def test_none_is_none(tmp_path, tiny):
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore(tiny[0].abstract_state()) is None
    assert not (tmp_path / "checkpoints").exists()


def test_only_the_newest_are_kept(tmp_path, tiny):
    _, state, _ = tiny
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(state.replace(step=state.step + step), {"step": step})
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["3", "4"]


NELBOS = {1: 5.0, 2: 3.0, 3: math.nan, 4: 4.0, 5: None, 6: 6.0, 7: None}


@pytest.fixture
def evaluated(tmp_path, tiny):
    """A folder where the two newest of seven and the best were to stay, and the abstract state."""
    experiment, state, _ = tiny
    for step, nelbo in NELBOS.items():
        # A folder that is opened again ranks what is in it.
        with Checkpoints(tmp_path, keep=2, keep_best=1) as checkpoints:
            metrics = None if nelbo is None else {"nelbo": nelbo}
            checkpoints.save(state.replace(step=state.step + step), {"step": step}, metrics)
    return tmp_path, experiment.abstract_state()


def test_the_best_stays_and_the_newest_is_resumed(evaluated):
    folder, abstract = evaluated
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["2", "6", "7"]
    with Checkpoints(folder, keep=2, keep_best=1) as checkpoints:
        assert checkpoints.best_step() == 2 and checkpoints.latest_step() == 7
        found = {which: checkpoints.restore(abstract, which)[1] for which in ("best", "latest", 6)}
    assert found == {"best": {"step": 2}, "latest": {"step": 7}, 6: {"step": 6}}


def test_the_best_that_is_torn_gives_way_to_the_next(evaluated):
    folder, abstract = evaluated
    for file in (folder / "checkpoints" / "2" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    for file in (folder / "checkpoints" / "7" / "evaluation").iterdir():
        file.write_bytes(b"{")
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.restore(abstract, "best")[1] == {"step": 6}
        with pytest.raises(ValueError, match="can be read .step 2"):
            checkpoints.restore(abstract, 2)


def test_checkpoints_that_are_not_there(saved):
    folder, abstract, _ = saved
    with Checkpoints(folder, read_only=True) as checkpoints:
        with pytest.raises(ValueError, match="has no checkpoint of step 3; it has 1, 2"):
            checkpoints.restore(abstract, 3)
        with pytest.raises(ValueError, match="there is no best one"):
            checkpoints.restore(abstract, "best")


def test_what_names_a_checkpoint():
    assert [parse_which(text) for text in ("latest", "best", "12")] == ["latest", "best", 12]
    with pytest.raises(ValueError, match="it must be latest, best or a step"):
        parse_which("-1")
