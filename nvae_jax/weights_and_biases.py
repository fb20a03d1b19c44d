"""Weights & Biases: `--log=wandb`, from the extra `nvae_jax[wandb]`."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from nvae_jax import extras, paths
from nvae_jax.loggers import Logger


class WeightsAndBiases(Logger):
    """A run there, which a resumed run continues. Its variables say where it is and how it is
    called: WANDB_PROJECT (else nvae_jax), WANDB_NAME (else the folder's), WANDB_MODE=offline ...
    """

    def __init__(self):
        self._wandb = extras.load("wandb", "wandb", "the logger wandb")

    def start(self, workdir: Path, config: ConfigDict, step: int) -> None:
        """Begins a run, or continues the one that `workdir` was logged to, if not from step 0."""
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
        # Its own count of steps takes no row back, and rows after the last checkpoint come again.
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Logs {name: number}, over "step"."""
        self._run.log({"step": step, **row})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a uint8 (H, W, 3) image, over "step"."""
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def close(self) -> None:
        """Waits until all is sent, or written where it is offline."""
        self._run.finish()


make = WeightsAndBiases
