"""Settings of the training loop and of evaluation. `schema` defines the range of each."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop, from the sections `train`, `log` and `checkpoint`.

    Attributes:
      num_steps: number of training steps.
      batch_size: global batch size, over all devices.
      accumulation_steps: number of micro-batches that a batch is split into.
      ema_decay: decay of the EMA of the variables; 0 disables it.
      max_nonfinite_steps: number of consecutive skipped updates that stops the run.
      log_every_steps: steps between two rows of metrics.
      images_every_steps: steps between two grids of images; 0 draws them only at the end.
      num_images: number of images per grid.
      checkpoint_every_steps: steps between two checkpoints; 0 saves only at the end.
      keep_checkpoints: number of newest checkpoints to keep.
      keep_best_checkpoints: number of best checkpoints to keep besides.
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
    """The initial values of a new run.

    Attributes:
      init_from: a run directory with an optional checkpoint (RUN[@latest|best|STEP]) or a published
        `.pt` file, whose variables the run starts from; "" starts from random values.
      init_optimizer: whether to copy the optimiser's state too.
      init_differences: what to do with arrays whose shapes differ: "refuse" raises an error,
        "fresh" initialises them.
    """

    CHOICES: ClassVar = ("refuse", "fresh")

    init_from: str = ""
    init_optimizer: bool = False
    init_differences: str = "refuse"


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of evaluation and of batch-norm recalibration, from the section `eval`.

    Attributes:
      batch_size: global batch size, over all devices.
      every_steps: training steps between two evaluations of held-out images; 0 disables them.
      max_examples: number of held-out images to use, from the first; 0 uses all.
      recalibration_passes: number of passes of recalibration.
      recalibration_batch_size: number of images per pass.
    """

    batch_size: int
    every_steps: int
    max_examples: int
    recalibration_passes: int
    recalibration_batch_size: int
