import contextlib
import gc
import math
import resource
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from nvae_jax import checkpoint
from nvae_jax.checkpoint import Checkpoints, SaveError
from nvae_jax.checkpoint_reader import CheckpointReader, parse_checkpoint_name
from nvae_jax.saving import CheckpointSaver


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory, tiny):
    folder, state = tmp_path_factory.mktemp("saved"), tiny[1]
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state.replace(step=state.step + step), {"step": step})
    return folder


@pytest.fixture
def saved(tmp_path, saved_once, tiny):
    """A folder with checkpoints of steps 1 and 2, and the abstract state."""
    experiment, state, _ = tiny
    shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)
    return tmp_path, experiment.abstract_state(), state


def test_a_saved_state_and_data_position_are_restored_exactly(saved):
    folder, abstract, state = saved
    checkpoints = CheckpointReader(folder)
    restored, data_state = checkpoints.restore(abstract)
    assert data_state == {"step": 2} and int(restored.step) == 2
    same = restored.replace(step=state.step)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    assert jax.tree.map(lambda a: a.dtype, same) == jax.tree.map(lambda a: a.dtype, state)


def each_file(damage):
    """Damages all files of a folder."""
    return lambda folder: [damage(file) for file in folder.rglob("*") if file.is_file()]


def cut_in_half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def fill_with_garbage(file):
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def replace_by_file(folder):
    shutil.rmtree(folder)
    folder.write_text("not a folder")


DAMAGES = {
    "cut": ("", each_file(cut_in_half)),
    "garbage": ("", each_file(fill_with_garbage)),
    "an empty folder": ("", empty),
    "a file in its place": ("", replace_by_file),
    "no arrays": ("state", shutil.rmtree),
    "arrays that are cut": ("state/ocdbt.process_0/d", each_file(cut_in_half)),
    "arrays of nothing": ("state/d", empty),
    "no list of arrays": ("state/_METADATA", Path.unlink),
    "no data state": ("data", shutil.rmtree),
    "another data state": ("data/metadata", lambda file: file.write_text("[1]")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_instead_of_a_damaged_checkpoint_the_one_before_is_restored(saved, caplog, capfd, damage):
    folder, abstract, _ = saved
    part, do = DAMAGES[damage]
    do(folder / "checkpoints" / "2" / part)
    checkpoints = CheckpointReader(folder)
    restored, data_state = checkpoints.restore(abstract)
    assert checkpoints.latest_step() == 1
    gc.collect()  # collects exceptions of tasks that were never awaited
    assert data_state == {"step": 1} and int(restored.step) == 1
    (record,) = caplog.records
    assert "step 2 cannot be read, trying the next one" in record.message
    assert "\n" not in record.message and len(record.message) < 200
    assert capfd.readouterr().err.count("\n") <= 1


def test_a_damaged_checkpoint_is_replaced_and_does_not_count(saved):
    folder, abstract, state = saved
    saved_steps = lambda: sorted(int(p.name) for p in (folder / "checkpoints").iterdir())  # noqa: E731
    empty(folder / "checkpoints" / "2" / "state")
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.restore(abstract)
        # A save in between, such as at a signal: the two newest good ones are kept.
        checkpoints.save(state.replace(step=state.step), {"step": 0})
    assert saved_steps() == [0, 1, 2]
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.restore(abstract)
        checkpoints.save(state.replace(step=state.step + 2), {"step": 2})
    assert saved_steps() == [1, 2]
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.restore(abstract)[1] == {"step": 2}
    empty(folder / "checkpoints" / "2" / "state")
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.restore(abstract)
        checkpoints.save(state.replace(step=state.step + 3), {"step": 3})
    assert saved_steps() == [1, 3]


@pytest.fixture
def second_process(monkeypatch):
    """A function that simulates a second process; its argument answers each `all_gather`."""

    def start(answer):
        all_gather = lambda value: [value, answer(value)]  # noqa: E731
        monkeypatch.setattr(checkpoint.processes, "all_gather", all_gather)

    return start


def test_a_checkpoint_that_one_process_cannot_read_is_restored_by_none(
    saved, second_process, caplog
):
    folder, abstract, _ = saved
    answers = iter([[[1, math.inf], [2, math.inf]], "no such file", None])
    second_process(lambda _: next(answers))
    checkpoints = CheckpointReader(folder)
    assert checkpoints.restore(abstract)[1] == {"step": 1}
    assert "step 2 cannot be read, trying the next one: process 1: no such file" in caplog.text


def test_a_step_that_only_one_process_sees_is_restored_by_none(saved, second_process, caplog):
    folder, abstract, _ = saved
    answers = iter([[[1, math.inf], [3, math.inf]], None, "no such file", None])
    second_process(lambda _: next(answers))
    checkpoints = CheckpointReader(folder)
    assert checkpoints.restore(abstract)[1] == {"step": 1}
    assert len(caplog.records) == 2 and "step 3 cannot be read" in caplog.records[0].message


def test_only_damaged_checkpoints_are_an_error(saved):
    folder, abstract, _ = saved
    for file in (folder / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    checkpoints = CheckpointReader(folder)
    with pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        checkpoints.restore(abstract)


@contextlib.contextmanager
def small_disk(num_bytes):
    """A context in which no file can become larger than so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_failed_save_is_a_one_line_error_and_can_be_repeated(tmp_path, tiny, caplog):
    _, state, _ = tiny
    state = state.replace(step=state.step + 3)
    with Checkpoints(tmp_path) as checkpoints:
        with small_disk(10_000):
            checkpoints.save(state, {"step": 3})
            told = "checkpoints/3: cannot be written .File too large"
            with pytest.raises(SaveError, match=told):
                while True:
                    checkpoints.check()
        assert checkpoints.latest_step() is None
        assert not list((tmp_path / "checkpoints").iterdir())
        assert not [record for record in caplog.records if record.levelname == "ERROR"]
        checkpoints.save(state, {"step": 3})
        checkpoints.wait()
        assert checkpoints.latest_step() == 3


def test_an_error_of_a_lost_process_is_raised_without_waiting_for_it(tmp_path, tiny, monkeypatch):
    """Waiting would last until jax aborts, with a stack trace instead of the error."""
    lost = RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    state, waits = tiny[1], []
    with pytest.raises(RuntimeError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state.replace(step=state.step + 3), {"step": 3})
        checkpoints.wait()
        saver = CheckpointSaver(checkpoints)
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(checkpoints, "wait", lambda: waits.append("for ever"))
        with saver.saving_on_error(list):
            raise lost
    assert lost.__notes__ == ["the newest checkpoint is step 3"] and not waits


def test_scores_can_be_added_to_a_saved_checkpoint(tmp_path, tiny):
    _, state, _ = tiny
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        checkpoints.save(state.replace(step=state.step + 1), {})
        checkpoints.wait()
        assert not checkpoints.is_scored(1)
        checkpoints.add_metrics(1, {"nelbo": 3.0, "kl": float("nan")})
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        assert checkpoints.is_scored(1)
        checkpoints.save(state.replace(step=state.step + 2), {}, {"nelbo": 4.0})
        checkpoints.save(state.replace(step=state.step + 3), {}, {"nelbo": 5.0})
    checkpoints = CheckpointReader(tmp_path)
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (1, 3)


def test_without_checkpoints_restore_returns_none_and_makes_no_folder(tmp_path, tiny):
    checkpoints = CheckpointReader(tmp_path)
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


@pytest.fixture(scope="module")
def evaluated_once(tmp_path_factory, tiny):
    folder, state = tmp_path_factory.mktemp("evaluated"), tiny[1]
    for step, nelbo in NELBOS.items():
        # The scores of saved checkpoints are read when the folder is opened again.
        with Checkpoints(folder, keep=2, keep_best=1) as checkpoints:
            metrics = None if nelbo is None else {"nelbo": nelbo}
            checkpoints.save(state.replace(step=state.step + step), {"step": step}, metrics)
    return folder


@pytest.fixture
def evaluated(tmp_path, evaluated_once, tiny):
    """A folder of seven checkpoints, of which the two newest and the best were kept, and the
    abstract state."""
    shutil.copytree(evaluated_once, tmp_path, dirs_exist_ok=True)
    return tmp_path, tiny[0].abstract_state()


def test_the_best_and_the_newest_checkpoints_are_kept(evaluated):
    folder, abstract = evaluated
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["2", "6", "7"]
    with Checkpoints(folder, keep=2, keep_best=1) as checkpoints:
        assert checkpoints.best_step() == 2 and checkpoints.latest_step() == 7
        found = {which: checkpoints.restore(abstract, which)[1] for which in ("best", "latest", 6)}
    assert found == {"best": {"step": 2}, "latest": {"step": 7}, 6: {"step": 6}}


def test_instead_of_a_damaged_best_checkpoint_the_next_best_is_restored(evaluated):
    folder, abstract = evaluated
    for file in (folder / "checkpoints" / "2" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    for file in (folder / "checkpoints" / "7" / "evaluation").iterdir():
        file.write_bytes(b"{")
    checkpoints = CheckpointReader(folder)
    assert checkpoints.restore(abstract, "best")[1] == {"step": 6}
    with pytest.raises(ValueError, match="can be read .step 2"):
        checkpoints.restore(abstract, 2)


def test_a_missing_step_and_a_missing_best_checkpoint_are_errors(saved):
    folder, abstract, _ = saved
    checkpoints = CheckpointReader(folder)
    with pytest.raises(ValueError, match="has no checkpoint of step 3; it has 1, 2"):
        checkpoints.restore(abstract, 3)
    with pytest.raises(ValueError, match="there is no best one"):
        checkpoints.restore(abstract, "best")


def test_a_checkpoint_is_named_latest_best_or_by_its_step():
    assert [parse_checkpoint_name(text) for text in ("latest", "best", "12")] == [
        "latest",
        "best",
        12,
    ]
    with pytest.raises(ValueError, match="it must be latest, best or a step"):
        parse_checkpoint_name("-1")
