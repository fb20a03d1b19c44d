"""Runs that move between device counts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_commands import ROOT, TINY

ARGUMENTS = [*TINY, "--config.checkpoint.every_steps=2"]


def command(workdir, *more):
    script = str(Path("launch") / "train.py")
    return [sys.executable, script, *ARGUMENTS, f"--workdir={workdir}", *more]


def start(arguments, devices=1):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    out, _ = process.communicate(timeout=500)
    return process.returncode, out


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["train/loss"] for row in rows}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses of six steps on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, out = finish(start(command(workdir, "--config.train.num_steps=6")))
    assert code == 0, out
    return losses(workdir)


def test_run_moves_between_device_counts(tmp_path, alone):
    """Eight devices, then one, then four that share the parameters: the losses of one device."""
    workdir = tmp_path / "run"
    six = "--config.train.num_steps=6"
    stages = (
        (8, ["--config.mesh.data=8"], 2),
        (1, [], 4),
        (4, ["--config.mesh.data=2", "--config.mesh.fsdp=2"], 6),
    )
    for devices, mesh, last in stages:
        # A run is cut off by a signal that it gives itself after its last step of a stage.
        process = start(
            [
                sys.executable,
                "-c",
                STOPPING.format(last=last),
                *command(workdir, six, *mesh)[1:],
            ],
            devices,
        )
        code, out = finish(process)
        assert code == (0 if last == 6 else 128 + signal.SIGTERM), out
    found = losses(workdir)
    assert list(found) == list(range(1, 7))
    np.testing.assert_allclose(list(found.values()), list(alone.values()), rtol=1e-5)


STOPPING = """
import runpy, signal, sys
from nvae_jax.data import pipeline
take, sys.argv = pipeline.TrainIterator.__next__, sys.argv[1:]

def stopping(iterator):
    batch = take(iterator)
    if iterator.get_state()["step"] == {last} and {last} < 6:
        signal.raise_signal(signal.SIGTERM)
    return batch

pipeline.TrainIterator.__next__ = stopping
sys.path.insert(0, "launch")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
