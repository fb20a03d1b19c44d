"""Adamax with coupled weight decay, linear warm-up and cosine decay, as an optax chain."""

from dataclasses import dataclass

import optax


@dataclass(frozen=True)
class OptimizerSettings:
    """Attributes:
    learning_rate: the highest, at the end of the warm-up.
    min_learning_rate: at the end of the run.
    warmup_steps: over which the rate rises linearly from 0.
    weight_decay: times each parameter, added to its gradient.
    epsilon: added to |gradient| inside Adamax's maximum.
    """

    num_steps: int
    learning_rate: float = 1e-2
    min_learning_rate: float = 1e-4
    warmup_steps: int = 0
    weight_decay: float = 3e-4
    epsilon: float = 1e-3

    def __post_init__(self):
        for name in ("learning_rate", "epsilon"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optimizer.{name} must be positive, not {getattr(self, name)}")
        for name in ("min_learning_rate", "warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is negative: {getattr(self, name)}")


def learning_rate_schedule(settings):
    """Maps a step to its learning rate: linear from 0, then cosine to the lowest, every step."""
    decay_steps = max(settings.num_steps - settings.warmup_steps, 1)
    lowest = settings.min_learning_rate / settings.learning_rate
    cosine = optax.cosine_decay_schedule(settings.learning_rate, decay_steps, alpha=lowest)
    if not settings.warmup_steps:
        return cosine
    linear = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
    return optax.join_schedules([linear, cosine], [settings.warmup_steps])


def adamax(settings, learning_rate=None):
    """u = max(0.999·u, |g| + ε); m = 0.9·m + 0.1·g; p -= lr / (1 - 0.9^t) · m / u.

    Args:
      settings: `OptimizerSettings`.
      learning_rate: a number or schedule; None takes the settings' schedule.
    """
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.scale_by_adamax(b1=0.9, b2=0.999, eps=settings.epsilon),
        optax.scale_by_learning_rate(
            learning_rate_schedule(settings) if learning_rate is None else learning_rate
        ),
    )
