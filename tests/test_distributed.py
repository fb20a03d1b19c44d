"""Real processes on this machine: joining, agreeing, and ending together."""

import re
import signal
import socket
import time
from pathlib import Path

import jax
import pytest
from PIL import Image

from nvae_jax import distributed, lost_process
from nvae_jax.distributed import DistributedSettings
from tests.conftest import environment

ROOT = Path(__file__).parents[1]
TIMEOUT = 5  # seconds, of the processes under test

START = f"""
import os, signal, sys, time
import numpy as np
from nvae_jax import distributed
from nvae_jax.interrupt import Interrupt

settings = distributed.DistributedSettings(timeout={TIMEOUT}, start_timeout=40)
distributed.initialize(settings)
distributed.initialize(settings)

import jax
index = jax.process_index()
"""

AGREE = """
assert jax.process_count() == 2 and jax.device_count() == 2
assert distributed.all_gather(index) == [0, 1]
"""

TOGETHER = """
import pathlib
from nvae_jax import run_directory
from tests.conftest import tiny_config
text = "é" * 600 * index  # too long for one row of bytes
assert distributed.all_gather([index, text]) == [[0, ""], [1, "é" * 600]]

def fails_with(message, check):
    try:
        with distributed.raise_together():
            check()
    except ValueError as error:
        return str(error) == message or str(error)

def only_in_one():
    if index == 1:
        raise OSError("no such disk")

def in_all():
    raise ValueError("no such key")

def inner():
    with distributed.raise_together():
        only_in_one()

assert fails_with("process 1: no such disk", only_in_one) is True
assert fails_with("no such key", in_all) is True
assert fails_with("process 1: no such disk", inner) is True
assert fails_with("", lambda: None) is None

def open_run(workdir):
    with run_directory.open_for_training(workdir, tiny_config()) as config:
        return config.train.num_steps

folder = pathlib.Path(os.environ['FOLDER'])
print("opened", open_run(folder / "shared"))
run_directory.SHARING_SECONDS = 0
try:
    open_run(folder / f"of_{index}")
except ValueError as error:
    print(error)

from nvae_jax import cli, train
data = {"name": "folder", "dir": str(folder / f"pictures_{index}"), "channels": 1}
try:
    train.train(tiny_config(data=data), folder / "new")
except ValueError as error:
    print(error, flush=True)
cli.run(lambda _: train.train(tiny_config(train={"batch_size": 16 - index}), folder / "new"))
"""

TRAIN = """
from nvae_jax import cli

def train(argv):
    with Interrupt() as interrupt:
        for step in range(10**6):
            if number := interrupt.stop():
                print("stopped at", step, flush=True)
                sys.exit(128 + number)
            if step == 0:
                print("ready", flush=True)
            {body}
            distributed.barrier(f"step {{step}}")
            time.sleep(0.02)

cli.run(train)
"""


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


class Processes:
    """The processes of a cluster that run one program each."""

    def __init__(self, commands, program, variables, start=START):
        self.all = [
            commands.start(start + program, environment=environment(**each)) for each in variables
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.all:
            process.kill()
            process.communicate()

    def wait_until_ready(self):
        for process in self.all:
            while "ready\n" not in process.output()[0]:
                assert process.poll() is None, process.output()
                time.sleep(0.01)

    def finish(self, seconds=40):
        """[(exit status, stdout, stderr)] of all of them, which must end within `seconds`."""
        end = time.monotonic() + seconds
        outputs = [
            process.communicate(timeout=max(end - time.monotonic(), 0.01)) for process in self.all
        ]
        return [
            (process.returncode, *output) for process, output in zip(self.all, outputs, strict=True)
        ]


def explicit(count=2):
    address = f"localhost:{free_port()}"
    names = distributed.VARIABLES
    return [dict(zip(names, (address, str(count), str(i)), strict=True)) for i in range(count)]


def slurm():
    common = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    port = str(free_port())
    return [
        {**common, "JAX_COORDINATOR_PORT": port, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
        for i in range(2)
    ]


def open_mpi(version):
    port = str(free_port())
    if version == 4:
        uri = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1", "JAX_COORDINATOR_PORT": port}
    else:
        uri = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
    rank, local = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"
    return [{**uri, "OMPI_COMM_WORLD_SIZE": "2", rank: str(i), local: str(i)} for i in range(2)]


@pytest.mark.parametrize(
    "variables",
    [explicit, slurm, lambda: open_mpi(4), lambda: open_mpi(5)],
    ids=["explicit", "slurm", "open_mpi_4", "open_mpi_5"],
)
def test_processes_join_and_agree(commands, variables):
    with Processes(commands, AGREE, variables()) as processes:
        results = processes.finish()
    assert [status for status, *_ in results] == [0, 0], results


WRONG_INPUT = 2  # the status of a command that no restart helps


def test_an_error_in_one_process_is_an_error_in_all(commands, tmp_path):
    """So are a run directory and data that are not the same for all of them."""
    for index in (0, 1):
        (tmp_path / f"pictures_{index}").mkdir()
        for name in range(40 + 20 * index):
            picture = Image.new("L", (16, 16), 100 * index)
            picture.save(tmp_path / f"pictures_{index}" / f"{name}.png")
    variables = [{**each, "FOLDER": str(tmp_path)} for each in explicit()]
    with Processes(commands, TOGETHER, variables) as processes:
        results = processes.finish(200)
    assert [status for status, *_ in results] == [WRONG_INPUT] * 2, results
    for _, output, error in results:
        opened, elsewhere, other_data = output.splitlines()[-3:]
        assert opened == "opened 6"
        assert re.fullmatch(
            r"process 1: \S+/of_1 on \S+ is not the same folder .* shared file system", elsewhere
        )
        assert re.search(r"images that processes 0 to 1 find are (\d+), (?!\1)\d+$", other_data)
        different = "the same config: train.batch_size is 16 in process 0 and 15 in process 1"
        assert different in error.splitlines()[-1]
    assert not (tmp_path / "new").exists() and not list((tmp_path / "of_1").glob("*"))
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [".lock", "config.json"]


@pytest.mark.parametrize(
    ("message", "cause", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", None, True),
        # What orbax makes of it while it writes a checkpoint.
        ("Timed out while waiting for async_write_complete barrier.", "UNAVAILABLE: tasks", True),
        ("Timed out while waiting for async_write_complete barrier.", None, False),
        ("[Errno 110] Connection timed out", "no answer", False),
        ("run/checkpoints cannot be used", "UNKNOWN: Gloo AllGather failed", True),
        ("", "Unable to initialize backend 'cpu': DEADLINE_EXCEEDED: no topology", True),
        ("", "Unable to initialize backend 'cuda': no device", False),
        ("", "std::bad_cast", True),
        ("", "INTERNAL: Task (1) is already in error before the barrier was called", True),
        ("", "INTERNAL: CUDA error: an illegal memory access", False),
    ],
)
def test_errors_of_a_lost_process(monkeypatch, message, cause, lost):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    error = ValueError(message)
    error.__cause__ = cause and RuntimeError(cause)
    assert lost_process.is_reason_of(error) == lost


@pytest.mark.parametrize(
    ("number", "victim"),
    [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 0)],
    ids=["killed_0", "killed_1", "frozen_0"],
)
def test_a_lost_process_ends_the_others_in_time(commands, number, victim):
    with Processes(commands, TRAIN.format(body=""), explicit()) as processes:
        processes.wait_until_ready()
        processes.all[victim].send_signal(number)
        # Measured: 0.1 s where process 0 is killed, otherwise a little less than the timeout.
        status = processes.all[1 - victim].wait(TIMEOUT + 4)
        message = processes.all[1 - victim].output()[1]
    assert status == lost_process.STATUS
    assert message.splitlines()[-1].startswith(lost_process.LINE), message


def test_a_process_that_fails_ends_the_others_in_time(commands):
    body = "if step == 20 and index == 1: raise ValueError('the disk is full')"
    with Processes(commands, TRAIN.format(body=body), explicit()) as processes:
        processes.wait_until_ready()
        (other, *_), (failed, _, message) = processes.finish(TIMEOUT + 6)
    assert (failed, message.splitlines()[-1]) == (2, "error: the disk is full")
    assert other not in (0, WRONG_INPUT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_at_one_step(commands, number):
    with Processes(commands, TRAIN.format(body=""), explicit()) as processes:
        processes.wait_until_ready()
        processes.all[1].send_signal(number)
        results = processes.finish()
    assert [status for status, *_ in results] == [128 + signal.SIGTERM, 128 + number], results
    assert all("received SIG" in output for _, output, _ in results)
    last_lines = {output.splitlines()[-1] for _, output, _ in results}
    assert len(last_lines) == 1 and "stopped at" in last_lines.pop()


def test_a_process_that_waits_alone_gives_up(commands):
    program = START.replace("start_timeout=40", "start_timeout=5")
    with Processes(commands, "", explicit()[1:], start=program) as processes:
        [(status, _, message)] = processes.finish()
    assert status == lost_process.STATUS
    waits, *_, last = message.splitlines()
    assert waits.endswith("waiting up to 5 s for the other processes")
    assert re.search(r"gone: process 1 of 2 at \S+ has waited 5 s .* for all to join$", last)


def test_a_port_in_use_is_an_error():
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        settings = DistributedSettings(coordinator_address=address, num_processes=2, process_id=0)
        with pytest.raises(ValueError, match="cannot listen at localhost.*in use"):
            distributed.initialize(settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timeout": 0}, "distributed.timeout must be an integer of at least 5"),
        ({"start_timeout": 2.5}, "distributed.start_timeout must be an integer"),
        ({"num_processes": 0}, "must be positive, not 0"),
        ({"process_id": -1}, "must not be negative: -1"),
        ({"num_processes": 2, "process_id": 2}, "process id 2 of 2"),
        ({"coordinator_address": "host"}, "HOST:PORT, not 'host'"),
        ({"coordinator_address": "host:99999"}, "HOST:PORT, not 'host:99999'"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        DistributedSettings(**values)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES must be a number, not 'two'"),
        ({"JAX_NUM_PROCESSES": "2"}, "^JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID missing"),
        ({"JAX_PROCESS_ID": "0"}, "^JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES missing"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "^JAX_NUM_PROCESSES and JAX_PROCESS_ID missing"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "names no coordinator: set JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_half_given_clusters(variables, message):
    with pytest.raises(ValueError, match=message):
        settings = distributed.with_environment(DistributedSettings(), variables)
        distributed.find_cluster(settings, variables)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"JAX_NUM_PROCESSES": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},  # a batch script, not started by srun
        {**slurm()[0], "SLURM_STEP_NUM_TASKS": "1"},  # a shell inside an allocation
    ],
)
def test_a_process_on_its_own(variables):
    settings = distributed.with_environment(DistributedSettings(), variables)
    assert distributed.find_cluster(settings, variables) is None


def test_settings_win_over_the_environment():
    settings = DistributedSettings(coordinator_address="a:1", num_processes=3, process_id=2)
    assert distributed.with_environment(settings, explicit()[0]) == settings


def test_one_process_needs_no_agreement():
    assert not distributed.preempted()
    with pytest.raises(SystemExit, match="2"):
        distributed.exit_without_waiting(2)


@pytest.fixture
def tpu_platform():
    """What jax says on a host with a TPU."""
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu,cpu")
    yield
    jax.config.update("jax_platforms", platforms)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_SKIP_MDS_QUERY": "1"}, None),
    ],
)
def test_cloud_tpu(tpu_platform, variables, name):
    cluster = distributed.find_cluster(DistributedSettings(), variables)
    assert (cluster and cluster.name) == name
