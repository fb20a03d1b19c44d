"""The training objective: NELBO, KL warm-up and KL balancing (paper, appendix A).

These are pure functions of arrays; all values are in nats.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

ACTIVE_NATS = 0.1


def active_units(kl_per_channel: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """Counts active units, (). A unit is a latent channel; it is active if its KL, summed over
    pixels and averaged over images, exceeds `ACTIVE_NATS`, 0.1 nats.

    Args:
      kl_per_channel: (..., z), that KL of each channel in nats.
    """
    return (kl_per_channel > ACTIVE_NATS).sum()


@dataclass(frozen=True)
class ObjectiveSettings:
    """Weights of the objective's terms over a run.

    Attributes:
      num_steps: number of steps that the schedules last.
      kl_constant: fraction of the steps before the KL weight β starts to rise.
      kl_anneal: fraction of the steps over which β rises to 1.
      kl_min: smallest β.
      spectral: weight λ of the two regularisers, at β = 1.
      spectral_init: λ at β = 0, from which it is annealed; 0 keeps λ constant.
    """

    num_steps: int
    kl_constant: float = 0.0001
    kl_anneal: float = 0.3
    kl_min: float = 0.0001
    spectral: float = 1e-2
    spectral_init: float = 0.0

    def __post_init__(self):
        for name in ("kl_constant", "kl_anneal", "kl_min"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"objective.{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("spectral", "spectral_init"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"objective.{name} is negative: {getattr(self, name)}")
        if self.spectral_init and not self.spectral:
            raise ValueError("objective.spectral must be positive if spectral_init anneals it")


def kl_weight(step: ArrayLike, settings: ObjectiveSettings) -> jax.Array:
    """The KL weight β at a step, which the KL warm-up raises from `kl_min` to 1."""
    risen = step - settings.kl_constant * settings.num_steps
    anneal_steps = max(settings.kl_anneal * settings.num_steps, 1e-9)
    return jnp.clip(risen / anneal_steps, settings.kl_min, 1.0)


def regularizer_weight(beta: ArrayLike, settings: ObjectiveSettings) -> jax.Array:
    """The regularisers' weight λ at a KL weight β: constant, or annealed geometrically from
    `spectral_init` to `spectral`."""
    if not settings.spectral_init:
        return jnp.asarray(settings.spectral, jnp.float32)
    start, end = np.log(settings.spectral_init), np.log(settings.spectral)
    return jnp.exp((1.0 - beta) * start + beta * end)


def balance_alpha(hierarchy: Any) -> np.ndarray:
    """The share of the KL that each group should have relative to the others, (groups,) top-down.

    It is proportional to the number of variables of the group's scale, divided by the number of
    groups of that scale (paper, appendix A).
    """
    top = hierarchy.num_scales - 1
    per_scale = np.array([4.0 ** (top - s) / g for s, g in enumerate(hierarchy.groups)])
    per_scale /= per_scale.min()
    return per_scale[list(hierarchy.scale_of_group())].astype(np.float32)


def balance_weights(kl: jax.Array, alpha: ArrayLike) -> jax.Array:
    """The KL balancing weights γ, (groups,), with mean 1: larger for groups with much KL for their
    size (paper, appendix A).

    Args:
      kl: (B, groups) KL of the global batch in nats. No gradient passes through it.
      alpha: (groups,), from `balance_alpha`.
    """
    raw = jax.lax.stop_gradient(jnp.abs(kl).mean(0) + 0.01) / alpha
    return raw / raw.mean()


def balanced_kl(kl: jax.Array, alpha: ArrayLike, beta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights the KL of each example: β · Σ_l γ_l · KL_l, with γ = 1 after the warm-up.

    Args:
      kl: (B, groups) in nats.
      alpha: (groups,), from `balance_alpha`.
      beta: the KL weight, ().

    Returns:
      the weighted KL (B,), and γ (groups,).
    """
    gamma = jnp.where(beta < 1.0, balance_weights(kl, alpha), 1.0)
    return beta * (kl * gamma[None]).sum(1), gamma
