"""Training under a real Open MPI, whose variables are all that the processes need."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, environment
from tests.test_cluster import ARGUMENTS, ENDLESS, losses, trainer_of, wait_for_step

pytestmark = pytest.mark.skipif(
    not shutil.which("mpirun"), reason="mpirun is not installed (Debian: openmpi-bin)"
)


@pytest.fixture
def mpirun(tmp_path):
    """A function from flags to mpirun with two processes that train."""
    started = []

    def call(*flags):
        # In tests there can be fewer cores than processes, and the user can be root.
        launcher = ["mpirun", "-np", "2", "--oversubscribe", "--allow-run-as-root", "--tag-output"]
        train = [sys.executable, "launch/train.py", *flags, f"--workdir={tmp_path / 'run'}"]
        process = subprocess.Popen(
            [*launcher, *train],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        with process:
            process.terminate()


def test_processes_started_by_mpirun_train_stop_together_and_resume(mpirun, tmp_path):
    """The processes find each other. After SIGTERM to mpirun they save; after one of them is
    killed, all end; then the same command resumes and trains to the end."""
    workdir = tmp_path / "run"
    process = mpirun(*ARGUMENTS, ENDLESS, "--config.distributed.timeout=20")
    wait_for_step(process, workdir, 3)
    os.kill(trainer_of(workdir, 0, "OMPI_COMM_WORLD_RANK"), signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert "Open MPI: waiting" in out and "the same command resumes" in out, out
    before = losses(workdir)

    process = mpirun(*ARGUMENTS, ENDLESS, "--config.distributed.timeout=20")
    wait_for_step(process, workdir, max(before) + 2)
    os.kill(trainer_of(workdir, 1, "OMPI_COMM_WORLD_RANK"), signal.SIGKILL)
    killed = time.monotonic()
    out, _ = process.communicate(timeout=300)
    assert process.returncode not in (0, 2) and time.monotonic() - killed < 60, out
    assert "resumed at step" in out
    after = losses(workdir)
    assert {step: after[step] for step in before} == before


def test_a_wrong_config_ends_mpirun(mpirun):
    process = mpirun(
        *ARGUMENTS,
        "--config.train.num_steps=6",
        "--config.data.name=folder",
        "--config.data.dir=no/folder",
    )
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "error: " in out and "no/folder" in out
