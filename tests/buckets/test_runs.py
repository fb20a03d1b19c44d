"""Runs in a bucket: the numbers of runs in a folder, also after kill -9."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from nvae_jax import api, build, reporting, resume, run_directory, train
from nvae_jax.buckets import BucketPath
from nvae_jax.checkpoint import Checkpoints
from tests import test_cluster as clusters
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[2]
STEPS = 7


def config_for(num_steps=STEPS):
    log = {"every_steps": 1, "images_every_steps": 3, "num_images": 4}
    return tiny_config(
        model={"unroll": 1},
        train={"num_steps": num_steps, "batch_size": 16},
        checkpoint={"every_steps": 2},
        log=log,
    )


def saved(workdir, config):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore(build.build(config).abstract_state())


def rows(text):
    """Of metrics.jsonl, without the columns that depend on the clock."""
    found = [json.loads(line) for line in text.splitlines()]
    timed = reporting.TIMES
    return [{name: value for name, value in row.items() if name not in timed} for row in found]


def logged_steps(content):
    """The steps of an event file's rows."""
    steps = []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + size])
        steps += [event.step] * any(v.tag == "train/loss" for v in event.summary.value)
        content = content[16 + size :]
    return steps


KILLED = """
import os, signal, sys
from nvae_jax import train
from nvae_jax.data import pipeline

take = pipeline.TrainIterator.__next__

def killing(iterator):
    if iterator.get_state()["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(iterator)

pipeline.TrainIterator.__next__ = killing
train.train(None, sys.argv[1])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in a folder, without interruption."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train.train(config_for(), workdir)
    return workdir


@pytest.mark.parametrize("kind", ["store", "s3"])
def test_a_run_that_was_killed_is_resumed_bit_for_bit(request, kind, whole, capsys):
    request.getfixturevalue(kind)
    workdir = BucketPath(f"{'gs' if kind == 'store' else 's3'}://bucket/killed/run")
    run_directory.save_config(workdir, build.resolve(config_for()))
    command = [sys.executable, "-c", KILLED, str(workdir)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    newest = max(run_directory.checkpoint_files.steps(workdir / "checkpoints"))
    kept = rows((workdir / "metrics.jsonl").read_text())
    assert newest >= 2 and [row["step"] for row in kept][:newest] == list(range(1, newest + 1))
    events = [path for path in workdir.iterdir() if "tfevents" in path.name]
    assert logged_steps(events[0].read_bytes())[:newest] == list(range(1, newest + 1))

    train.train(config_for(), str(workdir))
    assert f"resumed at step {newest}" in capsys.readouterr().out
    there, here = saved(workdir, config_for()), saved(whole, config_for())
    jax.tree.map(np.testing.assert_array_equal, there[0], here[0])
    assert there[1] == here[1]
    texts = [(folder / "metrics.jsonl").read_text() for folder in (workdir, whole)]
    assert rows(texts[0]) == rows(texts[1])
    assert kept == rows(texts[0])[: len(kept)]
    assert resume.describe_progress(workdir).startswith(f'{STEPS} {{"step": {STEPS}, ')

    def names(folder, part):
        return sorted(path.name for path in (folder / part).iterdir())

    for part in ("checkpoints", "samples"):
        assert names(workdir, part) == names(whole, part)
    one, other = api.load(str(workdir)), api.load(whole)
    np.testing.assert_array_equal(one.sample(2, seed=1), other.sample(2, seed=1))


def test_another_process_is_kept_out_and_another_folder_left_alone(bucket):
    workdir = bucket / "run"
    with run_directory.open_for_training(workdir, config_for()):
        with pytest.raises(ValueError, match=f"another process is training in {workdir}"):
            train.train(config_for(), workdir)
    with run_directory.open_for_training(workdir, config_for()):
        pass
    (bucket / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and no run directory"):
        train.train(config_for(), bucket / "other")
    assert [path.name for path in (bucket / "other").iterdir()] == ["notes.txt"]


def test_a_checkpoint_without_its_mark_does_not_count(bucket, tiny):
    experiment, state, _ = tiny

    def save(step):
        with Checkpoints(bucket) as checkpoints:
            at = state.replace(step=state.step + step)
            checkpoints.save(at, {"step": step, "num_examples": 1500})

    save(1), save(2)
    (bucket / "checkpoints" / "2" / "commit_success.txt").unlink()
    with Checkpoints(bucket, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert int(checkpoints.restore(experiment.abstract_state())[0].step) == 1
    save(2)
    with Checkpoints(bucket, read_only=True) as checkpoints:
        assert int(checkpoints.restore(experiment.abstract_state())[0].step) == 2


def test_two_processes_that_were_killed_resume_bit_for_bit(bucket, tmp_path):
    """What the killed processes computed after the checkpoint is in their temporary files."""
    workdir = bucket / "run"
    command = clusters.command(workdir, clusters.ENDLESS, "--config.checkpoint.keep=99")
    spool = tmp_path / "spool"
    spool.mkdir()
    launcher = ["bash", "launch/local_cluster.sh", "2", "--grace=200", "--"]
    timeout = f"--config.distributed.timeout={clusters.TIMEOUT}"

    def cluster(**variables):
        return clusters.start([*launcher, *command, timeout], 2, **variables)

    def spooled():
        (file,) = spool.glob("*/metrics.jsonl") or [None]
        return file

    process = cluster(TMPDIR=str(spool))
    clusters.wait_until(process, lambda: list(spool.glob("*/metrics.jsonl")))
    steps = run_directory.checkpoint_files.steps
    clusters.wait_until(process, lambda: steps(workdir / "checkpoints"))
    newest = max(steps(workdir / "checkpoints"))
    clusters.wait_until(process, lambda: len(spooled().read_text().splitlines()) > newest + 3)
    for index in (0, 1):
        os.kill(clusters.trainer_of(workdir, index), signal.SIGKILL)
    clusters.finish(process)
    newest = max(steps(workdir / "checkpoints"))
    before = rows(spooled().read_text())
    uploaded = rows((workdir / "metrics.jsonl").read_text())
    assert len(uploaded) >= newest and len(before) > newest and before[: len(uploaded)] == uploaded
    shutil.rmtree(spool)

    process = cluster()
    reached = len(before) // 2 * 2 + 2
    clusters.wait_until(process, lambda: max(steps(workdir / "checkpoints")) >= reached)
    process.terminate()
    code, out = clusters.finish(process)
    assert code == 128 + signal.SIGTERM and re.search(rf"resumed at step {newest}\b", out), out
    after = rows((workdir / "metrics.jsonl").read_text())
    assert [row["step"] for row in after] == list(range(1, len(after) + 1))
    assert after[: len(before)] == before
