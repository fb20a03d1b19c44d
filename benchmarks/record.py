"""Writes the results of a benchmark as JSON, with the machine and versions."""

import datetime
import json
import pathlib
import platform

import jax
import numpy as np

from nvae_jax import files


def processor():
    """The name of this machine's processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def write(path, rows, *, quiet=False, **settings):
    """Writes measurements to `path`, atomically.

    Args:
      path: the file; "" writes nothing.
      rows: a list of {name: value}.
      quiet: whether to print no message.
      settings: the settings of the benchmark.
    """
    if not path:
        return
    content = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()} ({platform.machine()}, {platform.system()})",
        "device": jax.devices()[0].device_kind,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        "settings": settings,
        "results": rows,
    }
    with files.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
    if not quiet:
        print(f"written to {path}")


def print_written(path):
    """Prints the path of the results, at the end."""
    if path:
        print(f"written to {path}")
