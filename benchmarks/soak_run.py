"""A very small run: the commands that start it, and its progress."""

import json
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINIEST = {
    "model.num_groups": 1,
    "model.process_blocks": 1,
    "model.preprocess_cells": 1,
    "model.postprocess_cells": 1,
    "model.latent_channels": 1,
    "model.encoder_width": 2,
    "model.decoder_width": 2,
    "train.batch_size": 2,
    "log.num_images": 2,
    "eval.batch_size": 8,
    "eval.max_examples": 8,
    "eval.recalibration_passes": 2,
    "distributed.timeout": 20,
}


def command(workdir, *more):
    """The command that trains in `workdir`."""
    script = str(ROOT / "launch" / "train.py")
    keys = [f"--config.{name}={value}" for name, value in TINIEST.items()]
    return [sys.executable, script, "--config=digits", f"--workdir={workdir}", *keys, *more]


def environment(**variables):
    """Environment variables for one core per process: such a small model needs no more."""
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    fixed = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": xla}
    return {**os.environ, **fixed, **variables}


def rows(workdir):
    """The training rows that the run has written, by step."""
    path, found = workdir / "metrics.jsonl", {}
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n") and "train/loss" in line:
            row = json.loads(line)
            found[row["step"]] = row
    return found


def last_step(workdir):
    """The last step that the run has reported, or 0."""
    return max(rows(workdir), default=0)
