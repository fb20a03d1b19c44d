"""What the hosts of a cluster must have alike: code, packages, config; and, nearly, clocks."""

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
from nvae_jax import build, distributed, schema

# Other versions compile other programs, or read other batches.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
OWN = ("data.dir", "data.workers", "distributed.")  # that each host may have its own of
CLOCK_SECONDS = 10.0  # that clocks may differ by


def join(config: ConfigDict, **arguments: Any) -> None:
    """Joins the other processes of a cluster, if this is one, and refuses them unless they are
    about to do the same. Says where clocks differ: no result depends on them.

    Args:
      config: the run's.
      **arguments: of the command, which must be the same in all processes too.

    Raises:
      ValueError: as `distributed.initialize`, or hosts that differ, in all processes.
    """
    distributed.initialize(build.build_distributed(config))
    if jax.process_count() == 1:
        return
    distributed.check_same("code", versions())
    flat = {key: v for key, v in schema.flatten(config).items() if not key.startswith(OWN)}
    distributed.check_same("config", {**flat, **arguments})
    _compare_clocks()


def versions() -> dict[str, str]:
    """{package: version} of what decides what is computed; this one's is told by its files."""
    found = {"nvae_jax": f"{nvae_jax.__version__} with files {_digest()}"}
    return found | {name: _version(name) for name in PACKAGES}


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # installed under another name, such as a nightly's
        return "unknown"


@cache
def _digest():
    """A short text that other code has another of."""
    folder, digest = Path(nvae_jax.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        # commands/ and configs/ are links in a checkout, and folders where it is installed.
        if path.suffix in (".py", ".cc", ".h") and path.parent.name not in ("commands", "configs"):
            digest.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _compare_clocks():
    distributed.all_gather(None)  # so that all look at theirs at once
    clocks = distributed.all_gather([time.time(), socket.gethostname()])
    ahead = [seconds - clocks[0][0] for seconds, _ in clocks]
    worst = max(range(len(ahead)), key=lambda index: abs(ahead[index]))
    if abs(ahead[worst]) > CLOCK_SECONDS and distributed.is_primary():
        print(
            f"warning: the clock of process {worst} on {clocks[worst][1]} is "
            f"{abs(ahead[worst]):.0f} s {'ahead of' if ahead[worst] > 0 else 'behind'} that of "
            f"process 0 on {clocks[0][1]}, which is the one that logs go by",
            file=sys.stderr,
            flush=True,
        )
