"""Processes of a cluster: how they join, stop at the same step, and end together.

Each process sends heartbeats to process 0. When one has been silent for `timeout` seconds, or at
once when process 0 is gone, a thread of jax ends every process, even those in a collective, where
Python code cannot run; `runtime_abort` reduces its message to one line. jax does not detect a
process that fails and then waits for the others to end: it must call `exit_without_waiting`.
Connection errors that are raised before jax ends the process are recognised by `lost_process`. A
process that is lost before it has joined is not detected: the others wait `start_timeout` seconds.
"""

import contextlib
import functools
import itertools
import os
import socket
import sys

import jax
from jax.experimental import multihost_utils

from nvae_jax import lost_process, runtime_abort
from nvae_jax.cluster_detection import (
    VARIABLES,
    DistributedSettings,
    find_cluster,
    port_of,
    with_environment,
)

LATER = 60  # seconds; otherwise, jax would end this process with its own message


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
            f"{cluster.name}: cannot join ({error}): set {', '.join(VARIABLES)}; or set"
            " JAX_NUM_PROCESSES=1 to use this host alone"
        ) from error


def _end_for_lost(timeout):
    silent = f"{lost_process.SILENT} {timeout} s (distributed.timeout)"
    lost_process.end(lost_process.describe(silent))


def _check_port_is_free(address):
    """Raises ValueError if the port is in use, on which jax would crash without a message."""
    try:
        with socket.create_server(("", port_of(address))):
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
