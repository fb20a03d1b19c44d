"""Checks that all hosts of a cluster have the same code, packages and config; compares clocks."""

import hashlib
import socket
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import nvae_jax
from nvae_jax import build, distributed, processes, schema

# With different versions, hosts could compile different programs, or read different batches.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
OWN = ("data.dir", "data.workers", "distributed.")  # keys that can differ between hosts
CLOCK_SECONDS = 10.0  # difference of clocks up to which there is no warning


def join(config: ConfigDict, **arguments: Any) -> None:
    """Joins the other processes of a cluster, if this is one, and checks that all have the same
    code, config and arguments. Warns if clocks differ, although no result depends on them.

    Args:
      config: the run's config.
      **arguments: arguments of the command, which must also be equal in all processes.

    Raises:
      ValueError: as `distributed.initialize`, or in all processes if hosts differ.
    """
    distributed.initialize(build.build_distributed(config))
    if jax.process_count() == 1:
        return
    processes.check_same("code", versions())
    flat = {key: v for key, v in schema.flatten(config).items() if not key.startswith(OWN)}
    processes.check_same("config", {**flat, **arguments})
    _compare_clocks()


def versions() -> dict[str, str]:
    """{package: version} of packages that affect results; of this one, a digest of its files."""
    found = {"nvae_jax": f"{nvae_jax.__version__} with files {_digest()}"}
    return found | {name: _version(name) for name in PACKAGES}


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # installed under another name, like nightly builds
        return "unknown"


@cache
def _digest():
    """A short digest of this package's code."""
    folder, digest = Path(nvae_jax.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        # commands/ and configs/ are links in a checkout, and folders in an installed package.
        if path.suffix in (".py", ".cc", ".h") and path.parent.name not in ("commands", "configs"):
            digest.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _compare_clocks():
    processes.all_gather(None)  # so that all read their clocks at the same time
    clocks = processes.all_gather([time.time(), socket.gethostname()])
    ahead = [seconds - clocks[0][0] for seconds, _ in clocks]
    worst = max(range(len(ahead)), key=lambda index: abs(ahead[index]))
    if abs(ahead[worst]) > CLOCK_SECONDS and processes.is_primary():
        print(
            f"warning: the clock of process {worst} on {clocks[worst][1]} is "
            f"{abs(ahead[worst]):.0f} s {'ahead of' if ahead[worst] > 0 else 'behind'} that of "
            f"process 0 on {clocks[0][1]}, which is the one that logs go by",
            file=sys.stderr,
            flush=True,
        )
