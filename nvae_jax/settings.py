"""Settings of the training loop and of evaluation. `schema` has the range of each."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class LoopSettings:
    """How long to train and how often to report; 0 pictures or checkpoints: only at the end.

    Attributes:
      batch_size: over all devices.
      accumulation_steps: micro-batches that a batch is split into.
      ema_decay: of the moving average of the variables; 0: none is kept.
      max_nonfinite_steps: skipped updates in a row that stop the run.
    """

    num_steps: int
    batch_size: int
    accumulation_steps: int
    ema_decay: float
    max_nonfinite_steps: int
    log_every_steps: int
    images_every_steps: int
    num_images: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    keep_best_checkpoints: int


@dataclass(frozen=True)
class StartSettings:
    """What a new run begins with.

    Attributes:
      init_from: RUN[@latest|best|STEP], a run directory, or a published `.pt`; "": random values.
      init_optimizer: whether the optimiser's moments come along.
      init_differences: what becomes of arrays of other shapes: "refuse" or "fresh".
    """

    CHOICES: ClassVar = ("refuse", "fresh")

    init_from: str = ""
    init_optimizer: bool = False
    init_differences: str = "refuse"


@dataclass(frozen=True)
class EvaluationSettings:
    """How to evaluate, and how to recalibrate batch norm.

    Attributes:
      batch_size: over all devices.
      every_steps: of training, the held-out images are evaluated; 0: never.
      max_examples: of these images, only the first so many; 0: all.
    """

    batch_size: int
    every_steps: int
    max_examples: int
    recalibration_passes: int
    recalibration_batch_size: int
