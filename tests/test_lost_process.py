"""When a process is lost, the others end with one line, whatever they are doing."""

import os
import re
import threading
from contextlib import ExitStack

import jax
import pytest

from nvae_jax import cluster_detection, distributed, lost_process, paths, runtime_abort
from tests.local_cluster import TIMEOUT, LocalCluster, jax_variables

# One of two processes kills itself while the other waits for it.
PROGRAM = f"""
import os, signal, time
import jax, numpy as np
from jax.experimental import multihost_utils
from nvae_jax import cli, cluster_detection, distributed, processes

def gather():
    multihost_utils.process_allgather(np.int32(1))

LAST = {{"barrier": jax.devices, "collective": gather, "computing": gather, "leaving": gather}}
DURING = {{
    "devices": jax.devices,
    "barrier": lambda: processes.barrier("together"),
    "collective": lambda: (gather(), gather()),
    "computing": lambda: (gather(), time.sleep(60)),
    "leaving": lambda: (gather(), jax.distributed.shutdown()),
}}
phase, killed = os.environ["PHASE"], "KILLED" in os.environ

def end():
    print(time.time(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def main(_):
    if killed and phase == "joining":
        end()
    start = {TIMEOUT} if phase == "joining" else 60
    distributed.initialize(cluster_detection.DistributedSettings({TIMEOUT}, start))
    if not killed:
        return DURING[phase]()
    LAST.get(phase, int)()
    time.sleep(1)
    end()

cli.run(main)
"""
PHASES = {  # name: (which of two is killed, the message of the other)
    "joining": (1, r"process 0 of 2 at \S+ has waited 5 s \(distributed.start_timeout\) for all"),
    "devices": (1, ".*silent for 5 s"),
    "barrier": (1, ".*(silent for 5 s|Task 1 heartbeat timeout)"),
    "collective": (1, ".*(silent for 5 s|Gloo)"),
    "computing": (0, "its connection is"),
    "leaving": (0, "its connection is"),
}


def variables_of_pair(phase, killed):
    """The environment variables of two processes."""
    variables = [{**each, "PHASE": phase} for each in jax_variables()]
    variables[killed]["KILLED"] = "1"
    return variables


@pytest.fixture(scope="module")
def ends_by_phase(commands):
    """{phase: (status, seconds after the other's end, printed lines)} of remaining processes."""
    with ExitStack() as stack:
        started = {
            phase: stack.enter_context(
                LocalCluster(commands, PROGRAM, variables_of_pair(phase, killed), start="")
            ).all
            for phase, (killed, _) in PHASES.items()
        }
        found = {}
        for phase, (killed, _) in PHASES.items():
            other, (killed_at, _) = started[phase][1 - killed], started[phase][killed].communicate()
            lines = other.communicate(100)[1].splitlines()
            seconds = other.streams[1].stat().st_mtime - float(killed_at.split()[-1])
            found[phase] = other.returncode, seconds, lines
    return found


@pytest.mark.parametrize("phase", PHASES)
def test_a_process_ends_in_one_line_in_any_phase(ends_by_phase, phase):
    status, seconds, lines = ends_by_phase[phase]
    assert status == lost_process.STATUS, lines
    assert lines[-1].startswith(lost_process.LINE), lines
    assert re.match(PHASES[phase][1], lines[-1].removeprefix(lost_process.LINE))
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert seconds < TIMEOUT + 4


@pytest.fixture
def simulated_end(monkeypatch):
    """[last line, exit status] of a simulated end of this process, and an event that it sets."""
    said, end = [], threading.Event()

    def leave(status):
        said.append(status)
        end.set()
        threading.Event().wait(1)  # nothing comes after it

    monkeypatch.setattr(lost_process, "_ending", threading.Lock())
    monkeypatch.setattr(os, "write", lambda _, text: said.append(text))
    monkeypatch.setattr(os, "_exit", leave)
    return said, end


def test_of_several_threads_only_the_first_ends_the_process(simulated_end):
    said, end = simulated_end
    with lost_process.limit(60, "too late"):
        pass
    with lost_process.limit(0, "one"), lost_process.limit(0.1, "other"):
        assert end.wait(10) and not threading.Event().wait(0.3)
    assert said == [b"one\n", lost_process.STATUS]


@pytest.mark.parametrize(
    ("message", "cause", "lost"),
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", None, True),
        # Raised by Orbax while it writes a checkpoint.
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
def test_errors_of_a_lost_process_are_recognised(monkeypatch, message, cause, lost):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    error = ValueError(message)
    error.__cause__ = cause and RuntimeError(cause)
    assert lost_process.is_reason_of(error) == lost


def test_the_place_is_the_function_of_the_package_that_was_running():
    with pytest.raises(ValueError) as failed:
        paths.parse(3)
    assert lost_process.place(failed.value) == "paths.parse"
    assert lost_process.place() == "Python"


def join(monkeypatch, message):
    def refuse(**_):
        raise RuntimeError(message)

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    settings = cluster_detection.DistributedSettings(5, 60, "localhost:1", 3, 2)
    distributed._join(cluster_detection.find_cluster(settings, {}), settings)


def test_a_process_that_process_0_refuses_ends_in_one_line(simulated_end, monkeypatch):
    join(monkeypatch, "std::bad_cast")
    line, status = simulated_end[0]
    assert line.startswith(b"error: process 2 of 3 at localhost:1: process 0 refuses it")
    assert status == lost_process.STATUS


def test_other_errors_of_joining_are_raised_unchanged(simulated_end, monkeypatch):
    with pytest.raises(RuntimeError, match="a device has been used"):
        join(monkeypatch, "a device has been used")
    assert not simulated_end[0]


def test_a_runtime_without_the_handler_is_left_unchanged(monkeypatch):
    factory = runtime_abort._jax.get_distributed_runtime_client
    monkeypatch.setattr(runtime_abort.ctypes, "CDLL", lambda _: int)
    with runtime_abort.replaced(int):
        assert runtime_abort._jax.get_distributed_runtime_client is factory
