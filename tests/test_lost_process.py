"""A process ends in one line, whatever it was in when another one was lost."""

import json
import os
import re
import subprocess
import sys
import threading

import jax
import pytest

from nvae_jax import distributed, lost_process, paths, runtime_abort
from tests.test_distributed import TIMEOUT, environment, free_port

# Forks a pair a phase after the imports, all at once. Of each, one process does what others then
# wait for in vain, and kills itself.
PAIRS = f"""
import json, os, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from nvae_jax import cli, distributed

def gather():
    multihost_utils.process_allgather(np.int32(1))

LAST = {{"barrier": jax.devices, "collective": gather, "computing": gather, "leaving": gather}}
DURING = {{
    "devices": jax.devices,
    "barrier": lambda: distributed.barrier("together"),
    "collective": lambda: (gather(), gather()),
    "computing": lambda: (gather(), time.sleep(60)),
    "leaving": lambda: (gather(), jax.distributed.shutdown()),
}}

def run(phase, port, victim, index):
    log = os.open(f"{{phase}}.log" if index != victim else os.devnull, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    start = {TIMEOUT} if phase == "joining" else 60
    settings = distributed.DistributedSettings({TIMEOUT}, start, f"localhost:{{port}}", 2, index)
    sys.argv = sys.argv[:1]

    def main(_):
        if index == victim and phase == "joining":
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.initialize(settings)
        if index != victim:
            return DURING[phase]()
        LAST.get(phase, int)()
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    cli.run(main)

processes = {{}}
for phase, (port, victim) in json.loads(sys.argv[1]).items():
    for index in range(2):
        if not (child := os.fork()):
            run(phase, port, victim, index)
            os._exit(0)
        processes[child] = phase, index == victim
ends = {{}}
while processes:
    child, status = os.wait()
    phase, killed = processes.pop(child)
    ends.setdefault(phase, {{}})[killed] = os.waitstatus_to_exitcode(status), time.monotonic()
seconds = lambda phase: ends[phase][False][1] - ends[phase][True][1]
print(json.dumps({{phase: [ends[phase][False][0], seconds(phase)] for phase in ends}}))
"""
PHASES = {  # name: (which of two is killed, what the other says)
    "joining": (1, r"process 0 of 2 at \S+ has waited 5 s \(distributed.start_timeout\) for all"),
    "devices": (1, ".*silent for 5 s"),
    "barrier": (1, ".*(silent for 5 s|Task 1 heartbeat timeout)"),
    "collective": (1, ".*(silent for 5 s|Gloo)"),
    "computing": (0, "its connection is"),
    "leaving": (0, "its connection is"),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """{phase: (status, seconds after the other's end, lines said)} of the processes left."""
    folder = tmp_path_factory.mktemp("pairs")
    pairs = {phase: (free_port(), victim) for phase, (victim, _) in PHASES.items()}
    program = [sys.executable, "-c", PAIRS, json.dumps(pairs)]
    out = subprocess.check_output(program, cwd=folder, env=environment(), timeout=200)
    lines = {phase: (folder / f"{phase}.log").read_text().splitlines() for phase in PHASES}
    return {phase: (*end, lines[phase]) for phase, end in json.loads(out).items()}


@pytest.mark.parametrize("phase", PHASES)
def test_the_end_in_any_phase(ends, phase):
    status, seconds, lines = ends[phase]
    assert status == lost_process.STATUS, lines
    assert lines[-1].startswith(lost_process.LINE), lines
    assert re.match(PHASES[phase][1], lines[-1].removeprefix(lost_process.LINE))
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert seconds < TIMEOUT + 4


@pytest.fixture
def ended(monkeypatch):
    """What would have been written at the end, and with which status it would have come."""
    said, end = [], threading.Event()

    def leave(status):
        said.append(status)
        end.set()
        threading.Event().wait(1)  # nothing comes after it

    monkeypatch.setattr(lost_process, "_ending", threading.Lock())
    monkeypatch.setattr(os, "write", lambda _, text: said.append(text))
    monkeypatch.setattr(os, "_exit", leave)
    return said, end


def test_the_first_of_several_ends_is_the_only_one(ended):
    said, end = ended
    with lost_process.limit(60, "too late"):
        pass
    with lost_process.limit(0, "one"), lost_process.limit(0.1, "other"):
        assert end.wait(10) and not threading.Event().wait(0.3)
    assert said == [b"one\n", lost_process.STATUS]


def test_the_place_is_where_the_package_was():
    with pytest.raises(ValueError) as failed:
        paths.parse(3)
    assert lost_process.place(failed.value) == "paths.parse"
    assert lost_process.place() == "Python"


def join(monkeypatch, message):
    def refuse(**_):
        raise RuntimeError(message)

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    settings = distributed.DistributedSettings(5, 60, "localhost:1", 3, 2)
    distributed._join(distributed.find_cluster(settings, {}), settings)


def test_a_process_that_is_refused_by_the_first_one(ended, monkeypatch):
    join(monkeypatch, "std::bad_cast")
    line, status = ended[0]
    assert line.startswith(b"error: process 2 of 3 at localhost:1: process 0 refuses it")
    assert status == lost_process.STATUS


def test_other_errors_of_joining_are_told_as_they_are(ended, monkeypatch):
    with pytest.raises(RuntimeError, match="a device has been used"):
        join(monkeypatch, "a device has been used")
    assert not ended[0]


def test_a_runtime_without_the_handler_aborts_as_ever(monkeypatch):
    factory = runtime_abort._jax.get_distributed_runtime_client
    monkeypatch.setattr(runtime_abort.ctypes, "CDLL", lambda _: int)
    with runtime_abort.replaced(int):
        assert runtime_abort._jax.get_distributed_runtime_client is factory
