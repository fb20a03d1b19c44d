"""Runs on several devices and processes: they equal runs on one device, can be moved, and resume
after a process is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from nvae_jax import build, checkpoint_reader, run_directory, sharding
from nvae_jax.data import pipeline
from tests import local_cluster
from tests.conftest import FAST_COMPILATION, of_devices
from tests.test_commands import ROOT, TINY

# The smallest model with a top-down path. Tests share its compiled programs.
MODEL = {"num_scales": 1, "num_groups": 2, "latent_channels": 2, "encoder_width": 4}
MODEL |= {"decoder_width": 4, "squeeze_excitation": False, "decoder_cell": "residual"}
ARGUMENTS = [*TINY, *(f"--config.model.{key}={value}" for key, value in MODEL.items())]
ARGUMENTS += ["--config.checkpoint.every_steps=2", "--config.log.images_every_steps=0"]
ENDLESS = "--config.train.num_steps=100000"
TIMEOUT = 30  # seconds, of distributed.timeout


def command(workdir, *more):
    script = str(Path("launch") / "train.py")
    return [sys.executable, script, *ARGUMENTS, f"--workdir={workdir}", *more]


STARTED = []


@pytest.fixture(autouse=True)
def nothing_runs_on():
    """Ends processes that a failed test has left."""
    yield
    for process in STARTED:
        with process:
            process.terminate()  # the launcher passes the signal on
    STARTED.clear()


def start(arguments, **variables):
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=of_devices(1, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def finish(process):
    out, _ = process.communicate(timeout=500)
    return process.returncode, out


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["train/loss"] for row in rows}


STOPPING = """
import signal
from nvae_jax.data import pipeline
take = pipeline.TrainIterator.__next__

def stopping(iterator):
    batch = take(iterator)
    if iterator.get_state()["step"] == {last}:
        signal.raise_signal(signal.SIGTERM)
    return batch

pipeline.TrainIterator.__next__ = stopping
"""


@pytest.fixture(scope="module")
def train_until(commands):
    """A function that trains on so many devices; the run interrupts itself with a signal after step
    `last`."""

    def run(workdir, last, devices=1, **mesh):
        flags = f"{FAST_COMPILATION} --xla_force_host_platform_device_count={devices}"
        keys = [ENDLESS, *(f"--config.mesh.{name}={size}" for name, size in mesh.items())]
        arguments = command(workdir, *keys)[2:]
        before = STOPPING.format(last=last)
        done = commands.run("train", *arguments, before=before, XLA_FLAGS=flags)
        assert done.returncode == 128 + signal.SIGTERM, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def run_alone(train_until, tmp_path_factory):
    """A run of six steps on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    train_until(workdir, 6)
    return workdir


def test_a_run_can_be_resumed_on_another_number_of_devices(train_until, run_alone, tmp_path):
    """The run is trained by eight devices, then one, then four that shard the parameters. The
    losses equal those of one device."""
    workdir, before = tmp_path / "run", []
    for last, devices, mesh in ((3, 8, {"data": 8}), (5, 1, {})):
        train_until(workdir, last, devices, **mesh)
        before.append(losses(workdir)[last])
        shutil.rmtree(workdir / "checkpoints" / str(last))  # it moves after the step ahead of this
    train_until(workdir, 6, 4, data=2, fsdp=2)
    found = losses(workdir)
    assert list(found) == list(range(1, 7))
    np.testing.assert_allclose(list(found.values()), list(losses(run_alone).values()), rtol=1e-5)
    np.testing.assert_allclose([found[3], found[5]], before, rtol=1e-6)


def cluster(processes, arguments):
    launcher = ["bash", "launch/local_cluster.sh", str(processes), "--grace=200", "--"]
    return start([*launcher, *arguments, f"--config.distributed.timeout={TIMEOUT}"])


def wait_until(process, condition):
    deadline = time.monotonic() + 400
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


def wait_for_step(process, workdir, step):
    """Waits until the run has reported `step`."""
    rows = workdir / "metrics.jsonl"
    wait_until(process, lambda: rows.exists() and step in losses(workdir))


def wait_for_checkpoint(process, workdir):
    """Waits until a checkpoint besides that of the start is complete, since they are written in the
    background."""
    names = lambda: (path.name for path in (workdir / "checkpoints").glob("*"))  # noqa: E731
    wait_until(process, lambda: any(name.isdigit() and int(name) for name in names()))


def trainer_of(workdir, index, variable="JAX_PROCESS_ID"):
    """The process id of a cluster's process that trains in `workdir`; `variable` is its `index`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            variables = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:
            continue  # the process has ended
        mine = f"--workdir={workdir}" in words and Path(words[0]).name.startswith("python")
        if mine and f"{variable}={index}" in variables:
            return int(folder.name)
    raise AssertionError(f"process {index} is not running")


def next_loss(workdir):
    """Computes (step, loss) of the update after the last checkpoint in this process."""
    config = run_directory.load_config(workdir, {"mesh.data": -1})
    experiment = build.build(config)
    saved = checkpoint_reader.CheckpointReader(workdir)
    state, data_state = saved.restore(experiment.abstract_state())
    iterator = pipeline.train_iterator(
        experiment.data, batch_size=experiment.loop.batch_size, seed=experiment.seed
    )
    iterator.set_state(data_state)
    images = sharding.to_devices(experiment.mesh, next(iterator)["image"])
    iterator.close()
    step = int(state.step) + 1
    return step, float(experiment.train_step()(state, images)[1]["loss"])


def assert_same_variables(one, other):
    """Asserts that two checkpoints, given as (workdir, step), have the same variables."""
    place, found = jax.sharding.SingleDeviceSharding(jax.devices()[0]), []
    for workdir, step in (one, other):
        saved = checkpoint_reader.CheckpointReader(workdir)
        found.append(saved.restore_raw(["params", "spectral"], lambda *_: place, step))
    jax.tree.map(np.testing.assert_array_equal, found[0][1], found[1][1])


def test_a_cluster_that_lost_a_process_resumes_bit_for_bit(tmp_path, run_alone):
    """Two processes continue a run of one device. One is killed, and the other ends by itself. The
    restarted cluster repeats the steps since the last checkpoint bit for bit, as does one process
    alone."""
    workdir, copy = tmp_path / "run", tmp_path / "copy"
    more = [
        ENDLESS,
        f"--config.train.init_from={run_alone}@latest",
        "--config.checkpoint.keep=99",
    ]
    process = cluster(2, command(workdir, *more))
    wait_for_step(process, workdir, 3)
    wait_for_checkpoint(process, workdir)
    os.kill(trainer_of(workdir, 1), signal.SIGKILL)
    killed = time.monotonic()
    code, out = finish(process)
    assert code not in (0, 2), out
    assert time.monotonic() - killed < TIMEOUT + 15, out
    assert f"starts from {run_alone}@latest, step 6" in out
    assert_same_variables((run_alone, 6), (workdir, 0))
    before = losses(workdir)
    shutil.copytree(workdir, copy)

    process = cluster(2, command(workdir, *more))
    wait_for_step(process, workdir, max(before) + 2)
    process.terminate()
    code, out = finish(process)
    assert code == 128 + signal.SIGTERM and "resumed at step" in out, out
    after = losses(workdir)
    assert list(after) == list(range(1, len(after) + 1))
    assert {step: after[step] for step in before} == before
    step, loss = next_loss(copy)
    assert step > 2
    np.testing.assert_allclose(loss, after[step], rtol=1e-6)


FIVE_STEPS = """
import json, sys
import jax, numpy as np
from nvae_jax import build, cluster_detection, distributed, processes, sharding
from tests.conftest import tiny_config

distributed.initialize(cluster_detection.DistributedSettings(timeout=100))
sharding.MIN_SHARDED_SIZE = 64  # of a model this small nothing would be sharded
model, mesh, out = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
experiment = build.build(tiny_config(model={**model, "unroll": 1}, mesh=mesh))
mesh = experiment.mesh
batches = (np.random.default_rng(0).random((5, 16, 16, 16, 1)) > 0.5).astype(np.float32)
state = experiment.create_state(batches[0])
everywhere = sharding.replicated(mesh)
rows = 16 // jax.process_count()  # of each batch are this process's
mine = slice(rows * jax.process_index(), rows * (jax.process_index() + 1))
step = experiment.train_step().lower(state, sharding.to_devices(mesh, batches[0][mine])).compile()
processes.barrier("compiled")  # collectives do not wait for a process that compiles
losses = []
for batch in batches:
    state, metrics = step(state, sharding.to_devices(mesh, batch[mine]))
    losses.append(np.asarray(metrics["loss"]))
whole = jax.jit(lambda tree: tree, out_shardings=everywhere)((state.params, state.batch_stats))
if processes.is_primary():
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf)
              for path, leaf in jax.tree_util.tree_leaves_with_path(whole)}
    sharded = any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    np.savez(out, losses=losses, sharded=sharded, devices=mesh.size, **arrays)
"""


@pytest.fixture(scope="module")
def five_steps(commands):
    """A function that trains five steps, and returns losses and all arrays by name."""

    def run(path, processes=1, devices=1, **mesh):
        arguments = [json.dumps(MODEL), json.dumps(mesh), path]
        started = local_cluster.start(
            commands, FIVE_STEPS, *arguments, processes=processes, devices=devices
        )
        for status, output in local_cluster.finish(started):
            assert status == 0, output
        with np.load(path) as file:
            return dict(file)

    return run


def test_several_processes_train_like_one_device(five_steps, tmp_path):
    """Each of four processes has two devices, which shard the kernels."""
    alone = five_steps(tmp_path / "alone.npz")
    found = five_steps(tmp_path / "found.npz", processes=4, devices=2, data=4, fsdp=2)
    assert found.pop("devices") == 8 and found.pop("sharded")
    np.testing.assert_allclose(found.pop("losses"), alone["losses"], rtol=1e-5)
    for name, array in found.items():
        # Some would be zero without rounding, hence the absolute tolerance.
        np.testing.assert_allclose(array, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)
