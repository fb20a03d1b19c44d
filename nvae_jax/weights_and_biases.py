"""Logs to Weights & Biases: `--log=wandb`, with the extra `nvae_jax[wandb]`."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from nvae_jax import extras, paths
from nvae_jax.loggers import Logger


class WeightsAndBiases(Logger):
    """A logger that writes to one W&B run, also after the training run is resumed.

    Environment variables configure it: WANDB_PROJECT (default: nvae_jax), WANDB_NAME (default: the
    name of the run directory), WANDB_MODE=offline and others.
    """

    def __init__(self):
        self._wandb = extras.load("wandb", "wandb", "the logger wandb")

    def start(self, workdir: Path, config: ConfigDict, step: int) -> None:
        """Starts a W&B run, or continues the earlier one of `workdir` unless `step` is 0."""
        known = workdir / "wandb" / "run_id.txt"
        self._run = self._wandb.init(
            dir=None if paths.is_bucket(workdir) else workdir,
            id=known.read_text() if step and known.is_file() else None,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", "nvae_jax"),
            name=os.environ.get("WANDB_NAME", workdir.name),
            config=config.to_dict(),
        )
        known.parent.mkdir(exist_ok=True)
        known.write_text(self._run.id)
        # W&B's own step counter must not decrease, but rows after a checkpoint can be logged again.
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Logs {name: number}, over "step"."""
        self._run.log({"step": step, **row})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a uint8 (H, W, 3) image, over "step"."""
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self) -> None:
        """Waits until everything is sent, or written in offline mode."""
        self._run.finish()


make = WeightsAndBiases
