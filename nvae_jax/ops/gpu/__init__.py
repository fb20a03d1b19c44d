"""For one NVIDIA GPU: kernels in Pallas by its Triton lowering.

Written for what a step on a GPU is bound by: passes over memory, and the number of kernels. Over
several GPUs XLA would gather an array for every call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import jax
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from nvae_jax.ops.gpu import depthwise, normalization, optimizer, squeeze_excitation, stacks
from nvae_jax.ops.gpu.normalized_depthwise import normalized_depthwise
from nvae_jax.ops.interface import Moments
from nvae_jax.ops.portable import Portable
from nvae_jax.ops.portable.depthwise import depthwise_conv, upsample_depthwise_conv
from nvae_jax.ops.portable.normalization import batch_norm
from nvae_jax.ops.portable.stacks import split


@dataclass(frozen=True)
class Gpu(Portable):
    """What runs on one NVIDIA GPU.

    Attributes:
      interpret: run the kernels without a GPU, slowly: to test them.
    """

    interpret: bool = False

    def depthwise_conv(
        self, x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: PrecisionLike = None
    ) -> jax.Array:
        maps = _Kernels(depthwise, self.interpret)
        return depthwise_conv(x, kernel, stride=stride, precision=precision, maps=maps)

    def upsample_depthwise_conv(
        self, x: jax.Array, kernel: jax.Array, *, precision: PrecisionLike = None
    ) -> jax.Array:
        maps = _Kernels(depthwise, self.interpret)
        return upsample_depthwise_conv(x, kernel, precision=precision, maps=maps)

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
        kernels = _Kernels(normalization, self.interpret)
        return batch_norm(
            x, scale, bias, epsilon, activation=activation, center=center, kernels=kernels
        )

    def normalized_depthwise_conv(
        self,
        x: jax.Array,
        kernel: jax.Array,
        before: tuple[jax.Array, jax.Array, jax.Array],
        after: tuple[jax.Array, jax.Array, jax.Array],
        epsilon: float,
        *,
        stride: int = 1,
        upsample: bool = False,
        precision: PrecisionLike = None,
    ) -> tuple[jax.Array, tuple[Moments, Moments]] | None:
        del precision  # it is exact
        if stride > 1:
            return None
        options = epsilon, 2 if upsample else 1, self.interpret
        return normalized_depthwise(*options, x, kernel[:, :, 0], before, after)

    def add_gated(
        self,
        skip: jax.Array,
        x: jax.Array,
        reduce: tuple[jax.Array, jax.Array],
        expand: tuple[jax.Array, jax.Array],
        scale: float,
        precision: PrecisionLike = None,
    ) -> jax.Array:
        if not squeeze_excitation.supports(x):
            return super().add_gated(skip, x, reduce, expand, scale, precision)
        return squeeze_excitation.add_gated(scale, self.interpret, skip, x, *reduce, *expand)

    def unstack(self, tree: Any, length: int) -> list[Any]:
        leaves, structure = jax.tree.flatten(tree)
        small = [leaf for leaf in leaves if stacks.is_small(leaf)]
        by_kernel = iter(stacks.unstack(small, length, self.interpret))
        parts = [
            next(by_kernel) if stacks.is_small(leaf) else split(leaf, length) for leaf in leaves
        ]
        return [jax.tree.unflatten(structure, [p[i] for p in parts]) for i in range(length)]

    def optimizer_step(
        self, optimizer_: Any, gradients: Any, state: Any, params: Any, accept: ArrayLike
    ) -> tuple[Any, Any]:
        return optimizer.optimizer_step(
            optimizer_, gradients, state, params, accept, self.interpret
        )


@dataclass(frozen=True)
class _Kernels:
    """The functions of a module with `interpret` already given. It is hashable, so that it can be
    static under jit."""

    module: ModuleType
    interpret: bool

    def __getattr__(self, name):
        return partial(getattr(self.module, name), interpret=self.interpret)
