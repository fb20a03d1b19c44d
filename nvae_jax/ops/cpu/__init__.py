"""Operations for CPUs: JAX code that XLA's CPU backend compiles to fast loops, and C++ kernels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from nvae_jax.ops import compiler
from nvae_jax.ops.cpu import (
    convolution,
    inverted_residual,
    native,
    normalization,
    optimizer,
    ordered,
    shifted,
    spectral,
    stacks,
)
from nvae_jax.ops.cpu import depthwise as native_depthwise
from nvae_jax.ops.portable import Portable, depthwise
from nvae_jax.ops.portable import normalization as portable_normalization


@dataclass(frozen=True)
class Cpu(Portable):
    """Operations in plain JAX for any number of CPU devices."""

    def conv(
        self, x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: PrecisionLike = None
    ) -> jax.Array:
        if kernel.shape[0] == 1:
            return super().conv(x, kernel, stride=stride, precision=precision)
        return ordered.conv(x, kernel, stride, precision)

    def depthwise_conv(
        self, x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: PrecisionLike = None
    ) -> jax.Array:
        return depthwise.depthwise_conv(x, kernel, stride=stride, maps=self._maps(x, kernel))

    def upsample_depthwise_conv(
        self, x: jax.Array, kernel: jax.Array, *, precision: PrecisionLike = None
    ) -> jax.Array:
        return depthwise.upsample_depthwise_conv(x, kernel, maps=self._maps(x, kernel))

    def _maps(self, x, kernel):
        """The module with the linear maps for these arrays; see `portable.depthwise`."""
        del x, kernel
        return shifted


@dataclass(frozen=True)
class Native(Cpu):
    """C++ kernels for float32 on one CPU device. Other dtypes use `Cpu`.

    On several devices XLA would gather whole arrays for every call of a kernel.
    """

    def problem(self) -> str | None:
        return native.problem()

    def compiler_options(self, platform: str) -> dict[str, Any] | None:
        return compiler.options(platform)

    def conv(
        self, x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: PrecisionLike = None
    ) -> jax.Array:
        if _is_exact(x, kernel) and kernel.shape[0] > 1 and stride <= 2:
            return convolution.conv(x, kernel, stride)
        return super().conv(x, kernel, stride=stride, precision=precision)

    def _maps(self, x, kernel):
        return native_depthwise if _is_exact(x, kernel) else super()._maps(x, kernel)

    def batch_norm(
        self,
        x: jax.Array,
        scale: jax.Array,
        bias: jax.Array,
        epsilon: float,
        *,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        center: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        kernels = normalization if _is_exact(x) else None
        return portable_normalization.batch_norm(
            x, scale, bias, epsilon, activation=activation, center=center, kernels=kernels
        )

    def inverted_residual(
        self,
        x: jax.Array,
        kernels: Sequence[jax.Array],
        norms: Sequence[tuple[jax.Array, jax.Array]],
        *,
        stride: int = 1,
        upsample: bool = False,
        precision: PrecisionLike = None,
    ) -> jax.Array:
        if _is_exact(x, *kernels) and inverted_residual.supports(
            x, stride=stride, upsample=upsample
        ):
            kernels, norms = tuple(kernels), tuple(norms)
            return inverted_residual.inverted_residual(self, upsample, precision, x, kernels, norms)
        return super().inverted_residual(
            x, kernels, norms, stride=stride, upsample=upsample, precision=precision
        )

    def spectral_penalty(
        self, kernels: Any, vectors: Mapping[str, jax.Array], rounds: int
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        return spectral.spectral_penalty(kernels, vectors, rounds)

    def global_norm(self, tree: Any) -> jax.Array:
        return optimizer.global_norm(tree)

    def optimizer_step(
        self, optimizer_: Any, gradients: Any, state: Any, params: Any, accept: ArrayLike
    ) -> tuple[Any, Any]:
        return optimizer.optimizer_step(optimizer_, gradients, state, params, accept)

    def unstack(self, tree: Any, length: int) -> list[Any]:
        leaves, structure = jax.tree.flatten(tree)
        if not leaves or not _is_exact(*leaves):
            return super().unstack(tree, length)
        entries: Any = stacks.unstack(leaves, length)
        return [jax.tree.unflatten(structure, entry) for entry in entries]


def _is_exact(*arrays):
    return all(array.dtype == jnp.float32 for array in arrays)
