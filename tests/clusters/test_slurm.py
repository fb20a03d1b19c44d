"""Runs launch/slurm.sbatch unchanged under a real SLURM of two nodes."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.clusters.slurm import SlurmCluster, missing
from tests.conftest import environment
from tests.test_cluster import ARGUMENTS, ENDLESS, losses, trainer_of

ROOT = Path(__file__).parents[2]
REASON = missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
STAND_IN = """#!/bin/sh
case $* in *--check*) exit 0 ;; esac
echo "task $SLURM_PROCID of $SLURM_NTASKS: local $SLURM_LOCALID, GPUs $CUDA_VISIBLE_DEVICES," \\
  "jax's ${JAX_LOCAL_DEVICE_IDS:-own choice}" """


@pytest.fixture(scope="module")
def slurm():
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture
def submit(slurm, tmp_path):
    """A function from options of sbatch and flags to a `Job` on two nodes."""
    for name in ("launch", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    jobs = []

    def call(*flags, options=(), python=Path(sys.executable).parent, **variables):
        variables = environment(PATH=f"{python}:{os.environ['PATH']}", **variables)
        jobs.append(Job(slurm, tmp_path, flags, options, variables))
        return jobs[-1]

    yield call
    for job in jobs:
        slurm.ask("scancel", job.number)


class Job:
    """A job that was submitted from `folder`."""

    def __init__(self, slurm, folder, flags, options, variables):
        self.slurm, self.folder, self.workdir = slurm, folder, folder / "run"
        self._log = folder / "log"
        command = ["env", f"--chdir={folder}", "sbatch", "--parsable", "--nodes=2"]
        command += [f"--output={self._log}", *options, "launch/slurm.sbatch"]
        number = slurm.ask(*command, *flags, f"--workdir={self.workdir}", variables=variables)
        assert number.isdigit(), number
        self.number = number

    def update(self, field):
        """Changes NAME=VALUE; whether SLURM did so, which it does not in every state."""
        return not self.slurm.ask("scontrol", "update", f"JobId={self.number}", field)

    def log(self):
        return self._log.read_text() if self._log.exists() else ""

    def fields(self):
        return self.slurm.job(self.number)

    def wait(self, condition, seconds=600):
        """Waits until `condition()` is true; fails if the job ends before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.fields()}\n{self.log()}"
            time.sleep(0.2)

    def wait_for_end(self):
        states = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.wait(lambda: self.fields()["JobState"] in states)
        return self.fields()["JobState"], self.fields()["ExitCode"]

    def wait_for_more_steps(self):
        seen = max(losses(self.workdir), default=0) if self.metrics().exists() else 0
        self.wait(lambda: self.metrics().exists() and max(losses(self.workdir)) >= seen + 3)

    def metrics(self):
        return self.workdir / "metrics.jsonl"

    def wait_for_restart(self, count):
        self.wait(lambda: self.fields()["Restarts"] == str(count))
        self.wait(lambda: self.log().count("resumed at step") == count)


# A config of steps that leave the processor to other tests while one waits for a time limit.
SLOW = """
import time
from nvae_jax.configs.digits import get_config
from nvae_jax.data import pipeline

take = pipeline.TrainIterator.__next__

def slowly(iterator):
    time.sleep(0.3)
    return take(iterator)

pipeline.TrainIterator.__next__ = slowly
"""


def test_a_job_resumes_at_its_time_limit_and_after_a_lost_process_but_not_when_cancelled(
    submit, tmp_path
):
    """Just before its time limit, and after SIGKILL of one process, the job is queued again and
    resumes. When its user cancels it, it saves and is not queued again."""
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW)
    flags = [f"--config={slow}" if flag.startswith("--config=") else flag for flag in ARGUMENTS]
    flags += [ENDLESS, "--config.distributed.timeout=20"]
    job = submit(*flags, options=["--signal=TERM@60"])
    job.wait_for_more_steps()
    before = losses(job.workdir)
    assert job.update("EndTime=now+90")  # SLURM checks time limits twice a minute
    job.wait(lambda: job.fields()["Restarts"] == "1" and job.update("TimeLimit=60"))
    job.wait_for_restart(1)
    job.wait_for_more_steps()
    os.kill(trainer_of(job.workdir, 1, "SLURM_PROCID"), signal.SIGKILL)
    job.wait_for_restart(2)
    job.wait_for_more_steps()
    job.slurm.ask("scancel", job.number)
    assert job.wait_for_end()[0] == "CANCELLED"
    job.wait(lambda: "the same command resumes" in job.log())
    after = losses(job.workdir)
    assert {step: after[step] for step in before} == before
    assert list(after) == list(range(1, len(after) + 1))
    saved = [int(path.name) for path in (job.workdir / "checkpoints").glob("[0-9]*")]
    assert max(saved) == max(after)
    assert re.findall("task ([01]) ended with status 143", job.log()).count("1") == 2
    assert "received SIGTERM: saving" in job.log()
    assert job.log().count("requeueing the job") == 2
    job.wait(lambda: not list(job.folder.glob(".restarts-*")))


def test_a_job_that_trains_to_its_end_is_completed(submit):
    job = submit(*ARGUMENTS, "--config.train.num_steps=6")
    assert job.wait_for_end() == ("COMPLETED", "0:0")
    assert list(losses(job.workdir)) == list(range(1, 7))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.model.no_such_key=1", "error: .*model.no_such_key"),  # reported before the step
        ("--config.data.dir=no/such/folder", "[01]: error: .*no/such/folder"),  # by each task
    ],
)
def test_a_job_with_a_wrong_config_is_not_queued_again(submit, flag, message):
    job = submit(*ARGUMENTS, "--config.data.name=folder", flag)
    assert job.wait_for_end() == ("FAILED", "2:0")
    assert re.search(f"^{message}", job.log(), re.MULTILINE)
    assert job.fields()["Restarts"] == "0"


BOUND = {f"{i} of 4: local {i % 2}, GPUs {i % 2}, jax's 0" for i in range(4)}
ONE_EACH = {f"{i} of 2: local 0, GPUs 0, jax's 0" for i in range(2)}
TWO_EACH = {f"{i} of 4: local {i % 2}, GPUs 0,1, jax's own choice" for i in range(4)}
TOGETHER = {f"{i} of 2: local 0, GPUs 0,1, jax's 0,1" for i in range(2)}
NO_GPUS = {f"{i} of 2: local 0, GPUs , jax's own choice" for i in range(2)}


@pytest.mark.parametrize(
    ("options", "variables", "tasks"),
    [
        ([], {}, ONE_EACH),
        (["--gpus-per-node=2"], {}, TWO_EACH),
        ([], {"SBATCH_GPUS_PER_NODE": "2"}, TWO_EACH),
        (["--gres=gpu:2"], {}, TWO_EACH),
        (["--exclusive"], {}, TWO_EACH),
        (["--gpus-per-node=2", "--ntasks-per-node=1"], {}, TOGETHER),
        (["--gpus-per-node=2", "--gpu-bind=single:1", "--ntasks-per-node=2"], {}, BOUND),
        (["--gpus-per-node=0"], {}, NO_GPUS),
    ],
)
def test_by_default_each_gpu_has_one_process(submit, tmp_path, options, variables, tasks):
    """This holds for every option that sets the number of GPUs, unless another one sets the number
    of processes."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(STAND_IN)
    python.chmod(0o755)
    job = submit("--config=digits", options=options, python=python.parent, **variables)
    assert job.wait_for_end() == ("COMPLETED", "0:0"), job.log()
    assert set(re.findall(r"^\d: task (.*)$", job.log(), re.MULTILINE)) == tasks
