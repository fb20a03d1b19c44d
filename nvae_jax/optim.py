"""Adamax with coupled weight decay, linear warm-up and cosine decay, as an optax chain."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import optax

from nvae_jax.ops.portable.optimizer import with_small_concatenated


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of the optimiser and its learning rate schedule.

    Attributes:
      num_steps: number of training steps.
      learning_rate: the highest rate, reached at the end of the warm-up.
      min_learning_rate: the rate at the end of the run.
      warmup_steps: steps over which the rate rises linearly from 0.
      weight_decay: coefficient of each parameter in the term added to its gradient.
      epsilon: added to |gradient| inside Adamax's maximum.
      gradient_clip: the largest Euclidean norm of all gradients together; 0 disables clipping.

    Raises:
      ValueError: if a value is out of range.
    """

    B1: ClassVar = 0.9  # decay of the first moment
    B2: ClassVar = 0.999  # decay of the infinity norm

    num_steps: int
    learning_rate: float = 1e-2
    min_learning_rate: float = 1e-4
    warmup_steps: int = 0
    weight_decay: float = 3e-4
    epsilon: float = 1e-3
    gradient_clip: float = 0.0

    def __post_init__(self):
        for name in ("learning_rate", "epsilon"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optimizer.{name} must be positive, not {getattr(self, name)}")
        for name in ("min_learning_rate", "warmup_steps", "weight_decay", "gradient_clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} is negative: {getattr(self, name)}")


def learning_rate_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """The learning rate by step: a linear warm-up from 0, then a cosine decay to the lowest."""
    decay_steps = max(settings.num_steps - settings.warmup_steps, 1)
    lowest = settings.min_learning_rate / settings.learning_rate
    cosine = optax.cosine_decay_schedule(settings.learning_rate, decay_steps, alpha=lowest)
    if not settings.warmup_steps:
        return cosine
    linear = optax.linear_schedule(0.0, settings.learning_rate, settings.warmup_steps)
    return optax.join_schedules([linear, cosine], [settings.warmup_steps])


class Optimizer(NamedTuple):
    """An optax transformation with its settings.

    Attributes:
      init: parameters -> state, as in optax.
      update: (gradients, state, params) -> (updates, state), as in optax.
      concatenated: the same transformation for trees in which `ops.portable.optimizer` has
        concatenated small arrays.
      settings: its `OptimizerSettings`.
      learning_rate: a number, or a schedule.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    concatenated: optax.GradientTransformation
    settings: OptimizerSettings
    learning_rate: Callable[..., Any] | float


def adamax(
    settings: OptimizerSettings, learning_rate: optax.ScalarOrSchedule | None = None
) -> Optimizer:
    """Makes Adamax with coupled weight decay: u = max(0.999·u, |g| + ε); m = 0.9·m + 0.1·g;
    p -= lr / (1 - 0.9^t) · m / u.

    Gradients are clipped, if at all, before the weight decay is added.

    Args:
      settings: `OptimizerSettings`.
      learning_rate: a number or schedule; None uses the settings' schedule.
    """
    rate = learning_rate_schedule(settings) if learning_rate is None else learning_rate
    clip = settings.gradient_clip
    chain = optax.chain(
        *([optax.clip_by_global_norm(clip)] if clip else []),
        optax.add_decayed_weights(settings.weight_decay),
        optax.scale_by_adamax(settings.B1, settings.B2, settings.epsilon),
        optax.scale_by_learning_rate(rate),
    )
    init, update = with_small_concatenated(chain)
    return Optimizer(init, update, chain, settings, rate)


def at_step(opt_state: Any, step: jax.Array) -> Any:
    """Sets the step of an optimiser state's learning rate schedule, an int32 array.

    The step count of the moments stays: it is the number of gradients that they average.
    """
    return optax.tree_utils.tree_set(opt_state, _is_schedule, count=step)


def with_schedule_of(opt_state: Any, other: Any) -> Any:
    """Copies the step of the learning rate schedule from one optimiser state to another."""
    return at_step(opt_state, optax.tree_utils.tree_get(other, "count", filtering=_is_schedule))


def _is_schedule(path, _):
    return any(getattr(key, "tuple_name", "") == "ScaleByScheduleState" for key in path)
