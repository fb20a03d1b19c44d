"""Finds the cluster that this process belongs to: from settings, environment variables, Open MPI,
SLURM or Cloud TPU."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SHORTEST_TIMEOUT = 5  # seconds; with less, a busy host would count as lost


@dataclasses.dataclass(frozen=True)
class DistributedSettings:
    """How processes join and how long they wait for each other.

    Attributes:
      timeout: seconds without a heartbeat after which a process counts as lost, and all end.
      start_timeout: seconds that processes wait for all others to join. If one is lost before it
        has joined, the others end after this time.
      coordinator_address: host:port of process 0.
      num_processes: number of processes in the cluster.
      process_id: number of this process, from 0.

    The last three can be None: they are then taken from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID, or from the cluster's own variables.

    Raises:
      ValueError: if a value is out of range.
    """

    timeout: int = 100
    start_timeout: int = 300
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self):
        for name in ("timeout", "start_timeout"):
            seconds = getattr(self, name)
            if not isinstance(seconds, int) or seconds < SHORTEST_TIMEOUT:
                raise ValueError(
                    f"distributed.{name} must be an integer of at least {SHORTEST_TIMEOUT} seconds,"
                    f" not {seconds}"
                )
        if self.coordinator_address is not None:
            port_of(self.coordinator_address)
        if self.num_processes is not None and self.num_processes < 1:
            raise ValueError(f"the number of processes must be positive, not {self.num_processes}")
        if self.process_id is not None and self.process_id < 0:
            raise ValueError(f"the process id must not be negative: {self.process_id}")
        if self.num_processes is not None and self.process_id is not None:
            if self.process_id >= self.num_processes:
                raise ValueError(
                    f"process id {self.process_id} of {self.num_processes} processes: ids start"
                    " at 0"
                )


def with_environment(
    settings: DistributedSettings, environment: Mapping[str, str]
) -> DistributedSettings:
    """Fills in missing `settings` from the three JAX_ variables.

    Raises:
      ValueError: if a variable is not a number, or is out of range.
    """
    address, count, index = (environment.get(name) or None for name in VARIABLES)
    found = {
        "coordinator_address": address,
        "num_processes": _integer(VARIABLES[1], count),
        "process_id": _integer(VARIABLES[2], index),
    }
    missing = {name: value for name, value in found.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **missing)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster, with the arguments for jax.distributed.initialize, which finds the others."""

    name: str
    arguments: dict


def find_cluster(settings: DistributedSettings, environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that this process belongs to, or None for a single process.

    jax.distributed.initialize detects clusters and their addresses itself. But it cannot detect
    that there is none: on a single machine it raises an error, and in an interactive SLURM step of
    one task, under Open MPI 5 or on one host of a larger TPU slice it waits for processes that
    never come. So this function decides first whether there is a cluster to join.

    It tries explicit settings, Open MPI, SLURM and Cloud TPU, in this order.

    Raises:
      ValueError: if explicit settings are incomplete.
    """
    if settings.num_processes == 1:
        return None
    given = [settings.coordinator_address, settings.num_processes, settings.process_id]
    if None not in given:
        return _explicit(*given)
    # A coordinator alone can complete a cluster's settings; a number or an id alone is a mistake.
    incomplete = given[1:] != [None, None]
    for find in () if incomplete else (_open_mpi, _slurm, _cloud_tpu):
        cluster = find(settings, environment)
        if cluster is not None:
            return cluster
    if given == [None, None, None]:
        return None
    pairs = zip(VARIABLES, given, strict=True)
    missing = " and ".join(name for name, value in pairs if value is None)
    raise ValueError(f"{missing} missing: a cluster needs all of {', '.join(VARIABLES)}")


def _explicit(address, count, index, local_device_ids=None):
    return Cluster(
        f"process {index} of {count} at {address}",
        {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
            "local_device_ids": local_device_ids,
            # Otherwise, jax would also choose the devices in a SLURM or MPI job.
            "cluster_detection_method": "deactivate",
        },
    )


def _open_mpi(settings, environment):
    count = _integer("OMPI_COMM_WORLD_SIZE", environment.get("OMPI_COMM_WORLD_SIZE"))
    if count is None or count == 1:
        return None
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return Cluster("Open MPI", {"coordinator_address": settings.coordinator_address})
    # Open MPI 5 does not tell its processes the address of the first one.
    if settings.coordinator_address is None:
        raise ValueError(
            f"this Open MPI names no coordinator: set {VARIABLES[0]}=HOST:PORT, HOST being where"
            " rank 0 runs (mpirun -x)"
        )
    index = _integer("OMPI_COMM_WORLD_RANK", environment.get("OMPI_COMM_WORLD_RANK"))
    local = _integer("OMPI_COMM_WORLD_LOCAL_RANK", environment.get("OMPI_COMM_WORLD_LOCAL_RANK"))
    chosen = "JAX_LOCAL_DEVICE_IDS" in environment or local is None
    return _explicit(settings.coordinator_address, count, index, None if chosen else [local])


def _slurm(settings, environment):
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if not all(name in environment for name in needed):
        return None  # not started by srun, so there is one process
    # An interactive step has one task, even if its allocation has more.
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"])
    if _integer("SLURM_STEP_NUM_TASKS", tasks) == 1:
        return None
    return Cluster("SLURM", {"coordinator_address": settings.coordinator_address})


def _cloud_tpu(settings, environment):
    # On import, jax adds "tpu" if the host has TPUs and JAX_PLATFORMS is not set.
    options: Any = jax.config  # its attributes are unknown to type checkers
    if "tpu" not in (options.jax_platforms or ""):
        return None
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    several_slices = environment.get("MEGASCALE_NUM_SLICES", "1") != "1"
    if hosts and "," not in hosts and not several_slices:
        return None
    if not hosts and "TPU_SKIP_MDS_QUERY" in environment:
        return None  # there is no metadata server to ask about other hosts
    return Cluster("Cloud TPU", {"coordinator_address": settings.coordinator_address})


def port_of(address: str) -> int:
    """The port of an address; raises ValueError unless it is HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"the coordinator's address must be HOST:PORT, not {address!r}")
    return int(port)


def _integer(name, text):
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None
