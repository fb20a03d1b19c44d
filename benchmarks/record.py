"""Keeps what a benchmark measured as JSON, with what it was measured on."""

import datetime
import json
import pathlib
import platform

import jax
import numpy as np


def processor():
    """The name of this machine's processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def write(path, rows, **settings):
    """Writes measurements to `path`.

    Args:
      path: of the file; nothing is written where it is empty.
      rows: a list of {name: value}.
      settings: what the benchmark was called with.
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
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"written to {path}")
