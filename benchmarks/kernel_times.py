"""Times the kernels of a program on an accelerator with JAX's profiler."""

import pathlib
import re
import tempfile
from collections import Counter

import jax

CALLS = 3
LARGEST = 30
# Names of the profiler's planes and lines with the work of a device by stream, or of a CPU by
# thread. Other lines of a device's plane repeat the same work by operation, module and step.
PLANES, LINES = {"cpu": "/host:CPU"}, {"gpu": "Stream"}


def measure(function):
    """Number of kernels and busy milliseconds of a call of `function`, and its `LARGEST` kernels.

    Kernels whose names differ only in digits count as one.
    """
    with tempfile.TemporaryDirectory() as folder:
        jax.block_until_ready(function())
        with jax.profiler.trace(folder, profiler_options=_options()):
            for _ in range(CALLS):
                last = function()
            jax.block_until_ready(last)
        path = next(pathlib.Path(folder).rglob("*.xplane.pb"))
        return summary(jax.profiler.ProfileData.from_file(str(path)), CALLS)


def summary(profile, calls):
    """Like `measure`, from a profile of `calls` calls."""
    count, nanoseconds = Counter(), Counter()
    for event in _events(profile):
        name = re.sub(r"[_.]\d+", "", event.name)[:80]
        count[name] += 1
        nanoseconds[name] += event.duration_ns
    total = sum(nanoseconds.values())
    largest = [
        {
            "kernel": name,
            "share": round(time / total, 4),
            "ms": round(time / 1e6 / calls, 4),
            "count": count[name] / calls,
        }
        for name, time in nanoseconds.most_common(LARGEST)
    ]
    return {
        "kernels": round(sum(count.values()) / calls),
        "busy_ms": round(total / 1e6 / calls, 3),
        "largest_kernels": largest,
    }


def _options():
    """Options without the host's events, which take longer to record than everything else."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    if jax.default_backend() != "cpu":
        options.host_tracer_level = 0
    return options


def _events(profile):
    platform = jax.default_backend()
    plane_name, line_name = PLANES.get(platform, "/device:"), LINES.get(platform, "")
    for plane in profile.planes:
        if plane.name.startswith(plane_name):
            for line in plane.lines:
                if line.name.startswith(line_name):
                    yield from line.events
