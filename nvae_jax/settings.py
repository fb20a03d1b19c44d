"""Settings of the training loop and of evaluation, checked."""

from dataclasses import dataclass, fields


def _check_at_least(settings, section, lowest, exceptions=()):
    for field in fields(settings):
        value = getattr(settings, field.name)
        least = 0 if field.name in exceptions else lowest
        if value < least:
            raise ValueError(f"{section}.{field.name} must be at least {least}, not {value}")


@dataclass(frozen=True)
class LoopSettings:
    """How long to train and how often to report; 0 pictures or checkpoints: only at the end.

    Attributes:
      batch_size: over all devices.
      accumulation_steps: parts that a batch is worked off in.
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

    def __post_init__(self):
        may_be_zero = (
            "images_every_steps",
            "checkpoint_every_steps",
            "keep_best_checkpoints",
            "ema_decay",
        )
        _check_at_least(self, "train", 1, may_be_zero)
        if self.ema_decay >= 1:
            raise ValueError(f"train.ema_decay must be less than 1, not {self.ema_decay}")


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

    def __post_init__(self):
        _check_at_least(self, "eval", 1, ("every_steps", "max_examples"))
