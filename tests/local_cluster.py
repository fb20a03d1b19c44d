"""Clusters of processes on this machine, for tests."""

import socket
import time

from nvae_jax import cluster_detection
from tests.conftest import environment, of_devices

TIMEOUT = 5  # seconds, of the processes under test
WRONG_INPUT = 2  # the status of a command that no restart helps

START = f"""
import os, signal, sys, time
import numpy as np
from nvae_jax import cluster_detection, distributed, processes
from nvae_jax.interrupt import Interrupt

settings = cluster_detection.DistributedSettings(timeout={TIMEOUT}, start_timeout=40)
distributed.initialize(settings)
distributed.initialize(settings)

import jax
index = jax.process_index()
"""


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


class LocalCluster:
    """One process for each dictionary of environment `variables`; all run `start` and `program`."""

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


def jax_variables(count=2):
    """JAX's own variables of the processes of a cluster."""
    address = f"localhost:{free_port()}"
    names = cluster_detection.VARIABLES
    return [dict(zip(names, (address, str(count), str(i)), strict=True)) for i in range(count)]


def start(commands, program, *arguments, processes=1, devices=1, **variables):
    """Starts the processes of a cluster, or a single one, with so many devices each."""
    return [
        commands.start(program, *arguments, environment=of_devices(devices, **variables, **each))
        for each in (jax_variables(processes) if processes > 1 else [{}])
    ]


def finish(processes):
    """[(exit status, output)]."""
    try:
        outputs = ["".join(process.communicate(timeout=500)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, output) for p, output in zip(processes, outputs, strict=True)]


def slurm_variables():
    """The variables that SLURM sets in two processes."""
    common = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    port = str(free_port())
    return [
        {**common, "JAX_COORDINATOR_PORT": port, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
        for i in range(2)
    ]


def open_mpi_variables(version):
    """The variables that Open MPI sets in two processes."""
    port = str(free_port())
    if version == 4:
        uri = {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1", "JAX_COORDINATOR_PORT": port}
    else:
        uri = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
    rank, local = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"
    return [{**uri, "OMPI_COMM_WORLD_SIZE": "2", rank: str(i), local: str(i)} for i in range(2)]
