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
      max_nonfinite_steps: skipped updates in a row that stop the run.
    """

    num_steps: int
    batch_size: int
    max_nonfinite_steps: int
    log_every_steps: int
    images_every_steps: int
    num_images: int
    checkpoint_every_steps: int
    keep_checkpoints: int

    def __post_init__(self):
        _check_at_least(self, "train", 1, ("images_every_steps", "checkpoint_every_steps"))


@dataclass(frozen=True)
class EvaluationSettings:
    """Batch size of evaluation over all devices, and how to recalibrate batch norm."""

    batch_size: int
    recalibration_passes: int
    recalibration_batch_size: int

    def __post_init__(self):
        _check_at_least(self, "eval", 1)
