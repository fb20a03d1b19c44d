"""Operations for programs that are lowered for several platforms at once, such as exported ones."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax import lax

from nvae_jax.ops.cpu import Cpu
from nvae_jax.ops.portable import Portable


@dataclass(frozen=True)
class MultiPlatform(Portable):
    """Uses `Cpu` where a program is lowered for CPUs, and `Portable` elsewhere. It cannot be
    differentiated."""

    def depthwise_conv(self, x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
        return _by_platform("depthwise_conv", x, kernel, options)

    def upsample_depthwise_conv(self, x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
        return _by_platform("upsample_depthwise_conv", x, kernel, options)


def _by_platform(name, x, kernel, options):
    cpu, default = (partial(getattr(ops, name), **options) for ops in (Cpu(), Portable()))
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)
