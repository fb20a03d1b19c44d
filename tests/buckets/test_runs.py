"""Runs in a bucket give the same numbers as runs in a folder, also after kill -9."""

import signal
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from nvae_jax import api, build, resume, run_directory, train
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.checkpoint_reader import CheckpointReader
from tests.buckets.conftest import STEPS, assert_same_run, config_for, rows
from tests.conftest import ROOT
from tests.local_cluster import finish, start

TRAIN = ROOT / "launch" / "train.py"


def logged_steps(content):
    """The steps of the rows in an event file."""
    steps = []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + size])
        steps += [event.step] * any(v.tag == "train/loss" for v in event.summary.value)
        content = content[16 + size :]
    return steps


KILLED = """
import os, signal, sys, time
import jax
from nvae_jax import checkpoint_files, paths, train
from nvae_jax.data import pipeline

take, workdir = pipeline.TrainIterator.__next__, paths.parse(sys.argv[1])

def killing(iterator):
    if iterator.get_state()["step"] == 7:
        while jax.process_index() or not checkpoint_files.steps(workdir / "checkpoints"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    return take(iterator)

pipeline.TrainIterator.__next__ = killing
train.train(None, workdir)
"""


def train_until_killed(commands, workdir, spool, processes=1):
    """Trains until the first process kills itself before the eighth step, and kills the others.
    Returns the rows that it has written, some of which have not been uploaded."""
    run_directory.save_config(workdir, build.resolve(config_for()))
    spool.mkdir()
    started = start(commands, KILLED, workdir, processes=processes, TMPDIR=str(spool))
    status = started[0].wait(500)
    for process in started:
        process.kill()
    assert status == -signal.SIGKILL, started[0].output()
    assert run_directory.checkpoint_files.steps(workdir / "checkpoints") == [4]
    (written,) = spool.glob("*/metrics.jsonl")
    kept = rows(written.parent)
    assert [row["step"] for row in kept] == list(range(1, 7)) and rows(workdir) == kept[:4]
    (events,) = (path for path in workdir.iterdir() if "tfevents" in path.name)
    assert logged_steps(events.read_bytes()) == [1, 2, 3, 4]
    return kept


def names(folder):
    """The names of all files of a run that are named by their step."""
    parts = ("checkpoints", "samples")
    return {part: sorted(path.name for path in (folder / part).iterdir()) for part in parts}


def test_two_processes_that_were_killed_resume_bit_for_bit(commands, bucket, tmp_path, whole):
    """The processes compute the steps since the last checkpoint again."""
    workdir = bucket / "run"
    kept = train_until_killed(commands, workdir, tmp_path / "spool", processes=2)
    ended = finish(start(commands, TRAIN, f"--workdir={workdir}", processes=2))
    assert [status for status, _ in ended] == [0, 0] and "resumed at step 4" in ended[0][1], ended
    assert rows(workdir)[:6] == kept and names(workdir) == names(whole)
    assert [row["step"] for row in rows(workdir)] == list(range(1, STEPS + 1))
    assert resume.describe_progress(workdir).startswith(f'{STEPS} {{"step": {STEPS}, ')
    for row, alone in zip(rows(workdir), rows(whole), strict=True):
        np.testing.assert_allclose(row["train/loss"], alone["train/loss"], rtol=1e-5)


def test_a_run_in_s3_that_was_killed_is_resumed_bit_for_bit(commands, s3, tmp_path, whole, capsys):
    workdir = s3 / "killed" / "run"
    kept = train_until_killed(commands, workdir, tmp_path / "spool")
    train.train(config_for(), str(workdir))
    assert "resumed at step 4" in capsys.readouterr().out
    assert_same_run(workdir, whole)
    assert kept == rows(whole)[:6] and names(workdir) == names(whole)
    one, other = api.load(str(workdir)), api.load(whole)
    np.testing.assert_array_equal(one.sample(2, seed=1), other.sample(2, seed=1))


def test_a_second_process_and_a_folder_of_something_else_are_refused(bucket):
    workdir = bucket / "run"
    with run_directory.open_for_training(workdir, config_for()):
        with pytest.raises(ValueError, match=f"another process is training in {workdir}"):
            train.train(config_for(), workdir)
    with run_directory.open_for_training(workdir, config_for()):
        pass
    (bucket / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and not a run directory"):
        train.train(config_for(), bucket / "other")
    assert [path.name for path in (bucket / "other").iterdir()] == ["notes.txt"]


def test_a_checkpoint_without_its_commit_marker_does_not_count(bucket, tiny):
    experiment, state, _ = tiny

    def save(step):
        with Checkpoints(bucket) as checkpoints:
            at = state.replace(step=state.step + step)
            checkpoints.save(at, {"step": step, "num_examples": 1500})

    save(1), save(2)
    (bucket / "checkpoints" / "2" / "commit_success.txt").unlink()
    checkpoints = CheckpointReader(bucket)
    assert checkpoints.latest_step() == 1
    assert int(checkpoints.restore(experiment.abstract_state())[0].step) == 1
    save(2)
    checkpoints = CheckpointReader(bucket)
    assert int(checkpoints.restore(experiment.abstract_state())[0].step) == 2
