"""The training loop: rows, pictures, resuming, stopping, and NaN."""

import functools
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from nvae_jax import build, reporting, run_directory, train
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.checkpoint_reader import CheckpointReader
from nvae_jax.data import pipeline
from nvae_jax.data.spec import DataError
from nvae_jax.interrupt import Interrupted
from nvae_jax.loggers import Logger
from tests.conftest import tiny_config

STEPS = 7


class PowerCut(BaseException):
    """A simulated power cut, after which no code runs."""


def config_for(**sections):
    sections.setdefault("train", {"num_steps": STEPS, "batch_size": 16})
    return tiny_config(model={"unroll": 1, "num_scales": 1}, **sections)


def saved(workdir, config):
    checkpoints = CheckpointReader(workdir)
    return checkpoints.restore(build.build(config).abstract_state())


def assert_same(a, b):
    """Asserts that two states and positions in the data are equal bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    assert a[1] == b[1]


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def values(row):
    """A row without the columns that depend on the clock."""
    return {name: value for name, value in row.items() if name not in reporting.TIMES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of all steps, without interruption."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train.train(config_for(log={"images_every_steps": 4, "every_steps": 1}), workdir)
    return workdir


def test_rows_have_the_documented_names(whole, undocumented):
    found = rows(whole)
    assert not undocumented(name for row in found for name in row)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    names = (
        "nelbo loss kl reconstruction kl_group_00 kl_group_01 active_units spectral bn "
        "learning_rate beta"
    )
    wanted = {f"train/{name}" for name in names.split()} | set(reporting.TIMES)
    assert wanted <= set(found[0])
    row = found[-1]
    total = row["train/reconstruction"] + row["train/kl"]
    np.testing.assert_allclose(row["train/nelbo"], total, rtol=1e-6)
    groups = sum(row[f"train/kl_group_{i:02d}"] for i in range(2))
    np.testing.assert_allclose(groups, row["train/kl"], rtol=1e-5)
    # β and γ are 1, so the objective is the NELBO plus the regularisers.
    regularizers = 1e-2 * (row["train/spectral"] + row["train/bn"])
    np.testing.assert_allclose(row["train/loss"], total + regularizers, rtol=1e-5)


def test_a_run_directory_has_all_its_files(whole):
    names = {path.name.split(".")[0] for path in whole.iterdir()}
    assert {"config", "checkpoints", "metrics", "events", "samples"} <= names
    pictures = {path.name for path in (whole / "samples").iterdir()}
    assert pictures == {
        f"step_{step:08d}_{kind}.png"
        for step in (4, STEPS)
        for kind in ("samples", "reconstructions")
    }


def test_a_logger_gets_rows_and_pictures_and_cannot_stop_training(tmp_path, whole, capsys):
    class Keep(Logger):
        def start(self, workdir, config, step):
            self.started, self.rows, self.pictures = (workdir, config.train.num_steps, step), {}, {}

        def metrics(self, step, row):
            self.rows[step] = row

        def image(self, step, name, image):
            self.pictures[step, name] = image.shape

    class Broken(Logger):
        def metrics(self, step, row):
            raise RuntimeError("no network")

    keep, config = Keep(), config_for(log={"images_every_steps": 4, "every_steps": 1})
    train.train(config, tmp_path / "run", loggers=[Broken(), keep])
    assert keep.started == (tmp_path / "run", STEPS, 0)
    assert [{"step": step, **row} for step, row in keep.rows.items()] == rows(tmp_path / "run")
    kinds = ("samples", "reconstructions")
    assert keep.pictures.keys() == {(step, kind) for step in (4, STEPS) for kind in kinds}
    assert keep.pictures[4, "samples"] == (34, 34, 3)
    assert capsys.readouterr().err.count("warning: the logger Broken.metrics of step 1") == 1
    assert list(map(values, rows(tmp_path / "run"))) == list(map(values, rows(whole)))
    assert not list((tmp_path / "run").glob("events*"))


def test_training_a_finished_run_does_nothing(whole, capsys):
    before = (whole / "metrics.jsonl").read_text()
    train.train(None, whole)
    assert "already trained for 7 steps" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_text() == before


def test_a_finished_run_can_be_extended(tmp_path, whole, capsys):
    workdir = shutil.copytree(whole, tmp_path / "run")
    train.train(None, workdir, {"train.num_steps": STEPS + 2}, extend=True)
    assert f"resumed at step {STEPS}" in capsys.readouterr().out
    found, config = rows(workdir), run_directory.load_config(workdir)
    assert [row["step"] for row in found] == list(range(1, STEPS + 3))
    assert found[:STEPS] == rows(whole)
    _, rate = build.build_optimizer(config)
    for row in found[STEPS:]:
        assert row["train/beta"] == 1
        np.testing.assert_allclose(row["train/learning_rate"], rate(row["step"] - 1), rtol=1e-6)
    state, data_state = saved(workdir, config)
    assert int(state.step) == data_state["step"] == STEPS + 2
    with pytest.raises(ValueError, match="--restart starts a run anew and --extend continues"):
        train.train(None, workdir, {"train.num_steps": 20}, extend=True, restart=True)


@pytest.mark.parametrize(("signal_number", "step"), [(signal.SIGTERM, 4), (signal.SIGINT, 2)])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, whole, monkeypatch, step, signal_number):
    """The signal arrives in the middle of an epoch, while the iterator makes a batch."""
    config = config_for(log={"images_every_steps": 4, "every_steps": 1})
    take = pipeline.TrainIterator.__next__
    taken = []

    def interrupting(iterator):
        taken.append(None)
        if len(taken) == step + 1:  # the first batch only gives the state its shapes
            signal.raise_signal(signal_number)
        return take(iterator)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.TrainIterator, "__next__", interrupting)
        with pytest.raises(Interrupted, match=f"saved at step {step}") as stopped:
            train.train(config, tmp_path / "run")
    assert stopped.value.signal_number == signal_number
    assert int(saved(tmp_path / "run", config)[0].step) == step
    train.train(config, tmp_path / "run")
    assert_same(saved(tmp_path / "run", config), saved(whole, config))
    assert list(map(values, rows(tmp_path / "run"))) == list(map(values, rows(whole)))


@pytest.mark.parametrize(("every", "step", "rest"), [(2, 2, [2, 4, 6, STEPS]), (STEPS, STEPS, [7])])
def test_an_interrupted_evaluation_is_done_after_resuming(
    tmp_path, monkeypatch, capsys, every, step, rest
):
    config = config_for(eval={"every_steps": every, "batch_size": 8, "max_examples": 64})
    batches, read = pipeline.eval_batches, []

    def interrupting(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            if len(read) == 1:
                signal.raise_signal(signal.SIGTERM)
            read.append(None)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "eval_batches", interrupting)
        with pytest.raises(Interrupted, match=f"saved at step {step}"):
            train.train(config, tmp_path / "run")
    assert len(read) < 8  # the evaluation stops at once
    assert int(saved(tmp_path / "run", config)[0].step) == step
    train.train(None, tmp_path / "run")
    scores = [row for row in rows(tmp_path / "run") if "test/nelbo" in row]
    assert [row["step"] for row in scores] == rest
    assert f"step {step}: test NELBO" in capsys.readouterr().out
    checkpoints = CheckpointReader(tmp_path / "run")
    assert checkpoints.is_scored(STEPS)
    train.train(None, tmp_path / "run")
    assert "already trained" in capsys.readouterr().out


def test_rows_after_the_last_checkpoint_are_written_once(tmp_path, whole, monkeypatch):
    """A power cut loses the steps since the last checkpoint: their rows must not appear twice."""
    config = config_for(checkpoint={"every_steps": 3}, log={"every_steps": 1})
    take = pipeline.TrainIterator.__next__
    taken = []

    def crashing(iterator):
        taken.append(None)
        if len(taken) == 7:
            raise PowerCut
        return take(iterator)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.TrainIterator, "__next__", crashing)
        with pytest.raises(PowerCut):
            train.train(config, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "train/lo')  # a row that the crash cut in two
    train.train(config, tmp_path / "run")
    assert list(map(values, rows(tmp_path / "run"))) == list(map(values, rows(whole)))
    assert_same(saved(tmp_path / "run", config), saved(whole, config))


def test_nan_updates_are_skipped_and_counted_and_many_end_the_run(tmp_path, monkeypatch, capsys):
    config = config_for(
        train={"num_steps": STEPS, "batch_size": 16, "max_nonfinite_steps": 2},
        checkpoint={"every_steps": 2},
    )
    take = pipeline.TrainIterator.__next__
    taken = []

    def poisoned(iterator):
        batch = take(iterator)
        taken.append(None)
        if len(taken) > 5:
            batch["image"] = np.full_like(batch["image"], np.nan)
        return batch

    monkeypatch.setattr(pipeline.TrainIterator, "__next__", poisoned)
    message = "step 6: reconstruction is not finite, for 2 steps in a row; last .* step 4"
    with pytest.raises(FloatingPointError, match=message):
        train.train(config, tmp_path / "run")
    assert "step 5: reconstruction" in capsys.readouterr().out
    state, _ = saved(tmp_path / "run", config)
    assert int(state.step) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def poison(monkeypatch, after, then=lambda count: None):
    """Makes all batches after the first `after` ones NaN; the very first only gives the state its
    shapes."""
    take, taken = pipeline.TrainIterator.__next__, []

    def poisoned(iterator):
        batch = take(iterator)
        taken.append(None)
        then(len(taken) - 1)
        if len(taken) - 1 > after:
            batch["image"] = np.full_like(batch["image"], np.nan)
        return batch

    monkeypatch.setattr(pipeline.TrainIterator, "__next__", poisoned)


@pytest.mark.parametrize(
    ("good_steps", "said"), [(0, "nothing is saved"), (3, "the newest checkpoint is step 3")]
)
def test_a_run_whose_last_updates_were_skipped_ends_with_an_error(
    tmp_path, monkeypatch, good_steps, said
):
    training = {"num_steps": STEPS, "batch_size": 16, "max_nonfinite_steps": 20}
    config = config_for(train=training, checkpoint={"every_steps": 2})
    poison(monkeypatch, good_steps)
    message = f"step 7, the last: the updates of {STEPS - good_steps} steps .* skipped; {said}"
    with pytest.raises(FloatingPointError, match=message):
        train.train(config, tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and rows(tmp_path / "run")[-1]["train/loss"] is None


@pytest.mark.parametrize(
    ("good_steps", "said"), [(0, "stopped at step 3: .* nothing is saved"), (1, "saved at step 1;")]
)
def test_a_signal_while_updates_are_skipped_reports_the_saved_step(
    tmp_path, monkeypatch, good_steps, said
):
    stop = functools.partial(signal.raise_signal, signal.SIGTERM)
    poison(monkeypatch, good_steps, lambda count: count == 3 and stop())
    with pytest.raises(Interrupted, match=said):
        train.train(config_for(), tmp_path / "run")


def test_the_step_before_an_error_is_saved_before_it_is_raised(tmp_path, whole, monkeypatch):
    config = config_for(log={"every_steps": 1})
    take, taken = pipeline.TrainIterator.__next__, []

    def damaged(iterator):
        taken.append(None)
        if len(taken) == 6:
            raise DataError("image 17 cannot be read")
        return take(iterator)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.TrainIterator, "__next__", damaged)
        with pytest.raises(DataError, match="image 17") as caught:
            train.train(config, tmp_path / "run")
    assert caught.value.__notes__ == ["the newest checkpoint is step 4"]
    train.train(config, tmp_path / "run")
    assert list(map(values, rows(tmp_path / "run"))) == list(map(values, rows(whole)))


def test_clipped_steps_between_rows_are_counted(tmp_path):
    def clipped(name, every):
        config = config_for(optimizer={"gradient_clip": 100.0}, log={"every_steps": every})
        train.train(config, tmp_path / name)
        return {row["step"]: row for row in rows(tmp_path / name)}

    each, some = clipped("each", 1), clipped("some", 3)
    found = [each[step]["train/clipped_fraction"] for step in range(1, STEPS + 1)]
    assert found == [float(each[s]["train/gradient_norm"] > 100.0) for s in range(1, STEPS + 1)]
    assert 0 < sum(found) < STEPS
    assert some[6]["train/clipped_fraction"] == pytest.approx(np.mean(found[3:6]))


def test_images_per_second_counts_only_training(tmp_path, monkeypatch):
    seconds = [0.0]

    def taking(function, duration):
        def slow(*args, **kwargs):
            seconds[0] += duration
            return function(*args, **kwargs)

        return slow

    monkeypatch.setattr("time.perf_counter", lambda: seconds[0])
    slow = {(pipeline.TrainIterator, "__next__"): 2.0, (train.HeldOutEvaluator, "__call__"): 1000.0}
    slow |= {(train.Drawing, "__call__"): 1000.0, (Checkpoints, "save"): 1000.0}
    for (kind, name), duration in slow.items():
        monkeypatch.setattr(kind, name, taking(getattr(kind, name), duration))
    evaluation = {"every_steps": 2, "batch_size": 8, "max_examples": 8}
    log, checkpoint = {"every_steps": 3, "images_every_steps": 2}, {"every_steps": 2}
    train.train(config_for(eval=evaluation, log=log, checkpoint=checkpoint), tmp_path / "run")
    timed = [r for r in rows(tmp_path / "run") if "train/loss" in r]
    found = [r["train/images_per_second"] for r in timed]
    # Saves come after steps 2, 4, 6 and 7, and after the row of such a step.
    assert [r["train/checkpoint_seconds"] for r in timed] == [0.0, 1000.0, 1000.0, 1000.0]
    # Steps 1 and 7 have rows too. The batch of the step after has been asked for at a row.
    assert found == pytest.approx([4.0, 8.0, 12.0, 8.0])


def test_a_bad_batch_changes_only_the_step_number():
    experiment = build.build(config_for())
    images = (np.random.default_rng(0).random((16, *experiment.image_shape)) > 0.5).astype("f4")
    state, update = experiment.create_state(images), experiment.train_step()
    before = jax.tree.map(np.array, state)  # a step overwrites the arrays that it is given
    after, metrics = update(state, images * np.nan)
    assert int(after.nonfinite_steps) == 1 and int(after.step) == int(before.step) + 1
    for name in ("params", "batch_stats", "opt_state", "spectral"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    good, _ = update(after, images)
    assert int(good.nonfinite_steps) == 0


def test_a_wrong_config_makes_no_folder(tmp_path):
    with pytest.raises(ValueError, match="not divisible"):
        train.train(tiny_config(data={"image_size": 10}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_data_make_no_folder(tmp_path):
    config = tiny_config(data={"name": "mnist", "image_size": 32, "dir": str(tmp_path / "no")})
    with pytest.raises(ValueError, match="no"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_lost_its_checkpoints_keeps_its_metrics(tmp_path, whole, commands):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match="has metrics but no checkpoint: .* pass --restart"):
        train.train(None, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(whole)
    done = commands.run("train", f"--workdir={whole}", "--restart")
    assert done.returncode == 2 and "has a checkpoint of step 7" in done.stderr
    assert done.stderr.count("\n") == 1
