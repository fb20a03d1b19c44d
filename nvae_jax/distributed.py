"""Processes of a cluster: how they find each other, agree to stop, and end together.

Each process sends heartbeats to process 0. When one has been silent for `timeout` seconds, or at
once when process 0 is gone, a thread of jax ends every process, even those in a collective, where
Python code cannot run; `runtime_abort` reduces its message to one line. jax does not detect a
process that fails and then waits for the others to end: it must call `exit_without_waiting`.
Connection errors that are raised before jax ends the process are recognised by `lost_process`. A
process that is lost before it has joined is not detected: the others wait `start_timeout` seconds.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from nvae_jax import lost_process, runtime_abort

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SHORTEST_TIMEOUT = 5  # seconds; with less, a busy host would count as lost
ONE_PROCESS_HINT = "set JAX_NUM_PROCESSES=1 to use this host alone"
LATER = 60  # seconds; otherwise, jax would end this process with its own message
LONGEST_WAIT = 24 * 3600  # seconds; if a process is lost in this time, all of them end


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
            _port(self.coordinator_address)
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


def initialize(settings: DistributedSettings | None = None) -> None:
    """Joins the other processes. Does nothing if there are none, or when called again.

    It must be called before anything uses a device.

    Args:
      settings: a DistributedSettings.

    Raises:
      ValueError: if settings contradict each other or are incomplete, or the cluster cannot be
        joined. If other processes do not join in time, or are lost later, this one ends instead,
        with one line on stderr and status `lost_process.STATUS`.
      RuntimeError: if a device has been used already.
    """
    if jax.distributed.is_initialized():
        return
    settings = with_environment(settings or DistributedSettings(), os.environ)
    cluster = find_cluster(settings, os.environ)
    if cluster is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if hasattr(jax.config, "jax_enable_preemption_service"):  # otherwise it is always on
        jax.config.update("jax_enable_preemption_service", True)
    wait = f"waiting up to {settings.start_timeout} s for the other processes"
    print(f"{cluster.name}: {wait}", file=sys.stderr, flush=True)
    _join(cluster, settings)


def is_primary() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


_barriers = itertools.count()


def barrier(name: str) -> None:
    """Waits until every process has called it; does nothing with one process. All processes must
    call it in the same order.

    It uses no device, and so can wait for a process that compiles or reads for a long time, which
    would be too long for a collective.
    """
    key = f"{name} {next(_barriers)}"  # the name of a barrier can be used only once
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * LONGEST_WAIT)


def on_primary(function: Callable[[], Any]) -> None:
    """Calls `function` in the first process, while the others wait; it must not wait for them.

    Raises:
      ValueError: in all processes, if it raises ValueError or OSError.
    """
    with raise_together():
        if is_primary():
            function()


def check_same(what: str, mine: Mapping[str, Any]) -> None:
    """Checks that `mine` is equal in all processes, so that they compute the same.

    Args:
      what: a word or two for the values.
      mine: {name: JSON-compatible value}.

    Raises:
      ValueError: in all processes, with the first difference and the values of two processes.
    """
    gathered = [dict(values) for values in all_gather(list(mine.items()))]
    expected = gathered[0]
    for index, values in enumerate(gathered):
        different = [name for name in expected | values if expected.get(name) != values.get(name)]
        if different:
            name = different[0]
            more = f" (and {len(different) - 1} more)" if different[1:] else ""
            raise ValueError(
                f"the hosts of a cluster need the same {what}: {name} is {expected.get(name)!r} in "
                f"process 0 and {values.get(name)!r} in process {index}{more}"
            )


def all_gather(value: Any) -> list[Any]:
    """Gathers the `value`s of all processes, ordered by process. All of them must call it.

    Args:
      value: a JSON-compatible value.
    """
    if jax.process_count() == 1:
        return [value]
    barrier("all_gather")
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    longest = multihost_utils.process_allgather(np.int32(text.size)).max()
    row = np.full(-(-longest // 1024) * 1024, ord(" "), np.uint8)  # few sizes, so few programs
    row[: text.size] = text
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(row)]


@contextlib.contextmanager
def raise_together() -> Iterator[None]:
    """A context for checks in all processes: if one of them raises an error, all of them do.

    If any process raises ValueError or OSError, all raise ValueError. So every process ends like
    the command in a single process, and none waits for another. Inside the context, nothing must
    wait for other processes, except for a nested `raise_together`.

    Raises:
      ValueError: with the first error; it names the process, unless all have the same error.
    """
    if jax.process_count() == 1:
        yield
        return
    error = None
    try:
        yield
    except (ValueError, OSError) as caught:
        error = caught
    messages = all_gather(None if error is None else str(error))
    failed = [index for index, message in enumerate(messages) if message is not None]
    if failed:
        first = messages[failed[0]]
        same = messages.count(first) == len(messages)
        raise ValueError(first if same else f"process {failed[0]}: {first}") from error


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


def _join(cluster, settings):
    arguments = cluster.arguments
    if arguments.get("process_id") == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        _check_port_is_free(arguments["coordinator_address"])
    waited = f"has waited {settings.start_timeout} s (distributed.start_timeout) for all to join"
    missing = f"{lost_process.LINE}{cluster.name} {waited}"
    try:
        with (
            lost_process.limit(settings.start_timeout, missing),
            runtime_abort.replaced(functools.partial(_end_for_lost, settings.timeout)),
        ):
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=settings.start_timeout + LATER,
                heartbeat_timeout_seconds=settings.timeout - 1,  # jax looks once a second
            )
    except RuntimeError as error:
        if not runtime_abort.is_bad_cast(error):
            raise
        refused = "process 0 refuses it, or is lost: is its number taken, or their number another?"
        lost_process.end(f"error: {cluster.name}: {refused}")
    except (ValueError, LookupError, OSError) as error:
        raise ValueError(
            f"{cluster.name}: cannot join ({error}): set {', '.join(VARIABLES)}; or"
            f" {ONE_PROCESS_HINT}"
        ) from error


def _end_for_lost(timeout):
    silent = f"{lost_process.SILENT} {timeout} s (distributed.timeout)"
    lost_process.end(lost_process.describe(silent))


def _check_port_is_free(address):
    """Raises ValueError if the port is in use, on which jax would crash without a message."""
    try:
        with socket.create_server(("", _port(address))):
            pass
    except OSError as error:
        raise ValueError(f"process 0 cannot listen at {address}: {error.strerror}") from error


_polls = itertools.count(1)


def preempted() -> bool:
    """Whether all processes must stop at this call, because one of them has received SIGTERM.

    All processes must call it equally often, between the same steps. It uses no device and no
    communication: in a cluster, jax handles SIGTERM, and its service notifies all processes in the
    background and agrees on the next call that none of them has made yet.
    """
    if not is_cluster():
        return False
    return multihost_utils.reached_preemption_sync_point(next(_polls))


def is_cluster() -> bool:
    """Whether this process is one of a cluster."""
    return jax.distributed.is_initialized()


def exit_without_waiting(status: int) -> None:
    """Ends this process like sys.exit(status), but without waiting for others.

    It is for a process that fails while the others do not. With sys.exit, jax would wait for
    minutes until all processes end; meanwhile the others may be waiting for this one in a
    collective. When it is gone, they detect that, and end too.
    """
    if not jax.distributed.is_initialized():
        sys.exit(status)
    with contextlib.suppress(OSError):  # the pipe may be closed
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _port(address):
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"the coordinator's address must be HOST:PORT, not {address!r}")
    return int(port)


def _integer(name, text):
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None
