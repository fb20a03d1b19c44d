"""Monitors the process of a long run: its memory, open files and threads. Linux only."""

import pathlib
import statistics
import subprocess
import time

from matplotlib.figure import Figure
from soak_run import command, environment, last_step

MEBIBYTE = 2**20
MIN_SAMPLES = 8  # needed for a result
MAX_GROWTH = 0.05  # allowed growth of memory from the second quarter of the run to the last
FEW = 2  # allowed growth of open files and threads, which vary


def soak_steps(workdir, steps, seconds):
    """Trains and monitors; returns (samples, summary)."""
    workdir.mkdir(parents=True, exist_ok=True)
    samples, start = [], time.monotonic()
    with open(workdir / "log", "w") as log:
        arguments = command(workdir / "run", f"--config.train.num_steps={steps}", *_often(steps))
        process = subprocess.Popen(arguments, env=environment(), stdout=log, stderr=log)
        while process.poll() is None:
            step, seen = last_step(workdir / "run"), look(process.pid)
            if step and seen:
                samples.append({"seconds": time.monotonic() - start, "step": step} | seen)
            time.sleep(seconds)
    summary = judge(samples)
    if process.returncode:
        summary["failed"].append(f"training ended with status {process.returncode}")
    print(summary, flush=True)
    return samples, summary


def draw(samples, path):
    """Draws memory, open files and threads by step."""
    steps = [sample["step"] for sample in samples]
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [sample["memory"] / MEBIBYTE for sample in samples])
    left.set(title="private memory", xlabel="step", ylabel="MiB", ylim=(0, None))
    for name in ("files", "threads"):
        right.plot(steps, [sample[name] for sample in samples], label=name)
    right.set(title="open files, threads", xlabel="step", ylim=(0, None))
    right.legend()
    figure.savefig(path, metadata={"Date": None})


def _often(steps):
    """Flags with which evaluation, drawing and saving happen a hundred times."""
    keys = ("log.images_every_steps", "eval.every_steps", "checkpoint.every_steps")
    return [f"--config.{key}={max(1, steps // 100)}" for key in keys]


def look(pid):
    """Samples memory, open files and threads of a process from /proc; None after its end."""
    folder = pathlib.Path("/proc") / str(pid)
    try:
        lines = (folder / "status").read_text().splitlines()
        status = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
        files = len(list((folder / "fd").iterdir()))
        memory = int(status["RssAnon"][0]) * 1024  # without pages of files, which can be reclaimed
        return {"memory": memory, "files": files, "threads": int(status["Threads"][0])}
    except (OSError, KeyError):
        return None


def judge(samples):
    """Compares the last quarter of the run with the second; the first is a warm-up."""
    if len(samples) < MIN_SAMPLES:
        return {"failed": [f"{len(samples)} samples, but {MIN_SAMPLES} are needed: see --seconds"]}
    quarter = len(samples) // 4
    parts = samples[quarter : 2 * quarter], samples[-quarter:]
    summary = {"last_step": samples[-1]["step"], "seconds": samples[-1]["seconds"], "failed": []}
    for name, allowed in (("memory", None), ("files", FEW), ("threads", FEW)):
        before, after = (statistics.median(sample[name] for sample in part) for part in parts)
        summary[name] = {"second_quarter": before, "last_quarter": after}
        if after - before > (MAX_GROWTH * before if allowed is None else allowed):
            summary["failed"].append(f"{name} grew from {before} to {after}")
    return summary
