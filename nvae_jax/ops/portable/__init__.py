"""All operations in plain JAX, for TPUs and several GPUs; read these first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import (
    convolution,
    depthwise,
    inverted_residual,
    normalization,
    optimizer,
    spectral,
    squeeze_excitation,
    stacks,
    weight_norm,
)


@dataclass(frozen=True)
class Portable(Ops):
    """Operations that run on any number of devices of any platform."""

    def conv(
        self, x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: PrecisionLike = None
    ) -> jax.Array:
        return convolution.conv(x, kernel, stride=stride, precision=precision)

    def depthwise_conv(
        self, x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: PrecisionLike = None
    ) -> jax.Array:
        return depthwise.depthwise_conv(x, kernel, stride=stride, precision=precision)

    def upsample_depthwise_conv(
        self, x: jax.Array, kernel: jax.Array, *, precision: PrecisionLike = None
    ) -> jax.Array:
        return depthwise.upsample_depthwise_conv(x, kernel, precision=precision)

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
        return normalization.batch_norm(
            x, scale, bias, epsilon, activation=activation, center=center
        )

    def add_gated(
        self,
        skip: jax.Array,
        x: jax.Array,
        reduce: tuple[jax.Array, jax.Array],
        expand: tuple[jax.Array, jax.Array],
        scale: float,
        precision: PrecisionLike = None,
    ) -> jax.Array:
        return squeeze_excitation.add_gated(skip, x, reduce, expand, scale, precision)

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
        return inverted_residual.inverted_residual(
            self, x, kernels, norms, stride=stride, upsample=upsample, precision=precision
        )

    def weight_norm(
        self, kernels: Sequence[jax.Array], log_scales: Sequence[jax.Array]
    ) -> list[jax.Array]:
        return weight_norm.weight_norm(kernels, log_scales)

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
        parts = [stacks.split(leaf, length) for leaf in leaves]
        return [jax.tree.unflatten(structure, [p[i] for p in parts]) for i in range(length)]
