"""The interface of operations with an implementation per platform.

`portable` implements all of them in plain JAX. The folder of a platform has a class with faster
implementations of some, and can be deleted. `choice` decides which class a run uses.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from nvae_jax.ops import compiler

Moments = tuple[jax.Array, jax.Array]  # mean and variance


class Ops(ABC):
    """The operations. Arrays are float32 or bfloat16, and sums are accumulated in float32.

    Instances are hashable, and equal if they compute the same, because modules have them as an
    attribute. All operations support differentiation, `vmap` and `jit`. `precision` is the
    precision of products, as in `lax.dot`.
    """

    def problem(self) -> str | None:
        """Explains in a phrase why these operations cannot run here; None if they can."""
        return None

    def compiler_options(self, platform: str) -> dict[str, Any] | None:
        """The compiler options of a training step with these operations; see `compiler.options`."""
        return compiler.options(platform, unrolled=True)

    @abstractmethod
    def conv(
        self, x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: PrecisionLike = None
    ) -> jax.Array:
        """Cross-correlates with (k - 1) / 2 zeros on every side.

        Args:
          x: (B, H, W, C).
          kernel: (k, k, C, O), k odd, dtype of x.
          stride: stride in both directions. The padding does not depend on it.
          precision: precision of products.

        Returns:
          (B, ceil(H / stride), ceil(W / stride), O), dtype of x.
        """

    @abstractmethod
    def depthwise_conv(
        self, x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: PrecisionLike = None
    ) -> jax.Array:
        """Cross-correlates every channel with its own kernel, (k - 1) / 2 zeros on every side.

        Args:
          x: (B, H, W, C).
          kernel: (k, k, 1, C), k odd.
          stride: stride in both directions, 1 or 2. The padding does not depend on it.
          precision: precision of products.

        Returns:
          (B, ceil(H / stride), ceil(W / stride), C), dtype of x.

        Raises:
          ValueError: for other shapes or strides.
        """

    @abstractmethod
    def upsample_depthwise_conv(
        self, x: jax.Array, kernel: jax.Array, *, precision: PrecisionLike = None
    ) -> jax.Array:
        """Applies `depthwise_conv` to x with each pixel repeated in a 2×2 block; returns
        (B, 2 H, 2 W, C)."""

    @abstractmethod
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
        """Normalises over all but the last axis, with statistics in float32.

        Under `jit` with a sharded batch the statistics are those of the global batch.

        Args:
          x: (..., C).
          scale: (C,), float32.
          bias: (C,), float32.
          epsilon: constant added to the variance.
          activation: activation function, or None.
          center: (C,), an estimate of the mean, such as the running mean. Mean and variance are
            computed in one pass over x - center, which avoids cancellation. None stands for 0.

        Returns:
          the normalised array (..., C), dtype of x; the mean (C,) and the biased variance (C,),
          through which no gradient passes.
        """

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
        """Applies batch norm, swish, a depthwise convolution, batch norm and swish, in training.

        It is for implementations with a kernel for all of this. The others return None, and the
        caller composes it of `batch_norm` and `depthwise_conv`.

        Args:
          x: (B, H, W, C).
          kernel: (k, k, 1, C), k odd, not sharded.
          before: scale, bias and center of the first norm, as in `batch_norm`.
          after: those of the second norm.
          epsilon: constant added to the variances.
          stride: stride of the convolution, 1 or 2.
          upsample: whether to upsample the convolution's input by nearest neighbours.
          precision: precision of products.

        Returns:
          the result (B, H', W', C), dtype of x, and mean and biased variance (C,) of each norm,
          through which no gradient passes; None if there is no kernel for these arguments.
        """
        del x, kernel, before, after, epsilon, stride, upsample, precision
        return None

    @abstractmethod
    def add_gated(
        self,
        skip: jax.Array,
        x: jax.Array,
        reduce: tuple[jax.Array, jax.Array],
        expand: tuple[jax.Array, jax.Array],
        scale: float,
        precision: PrecisionLike = None,
    ) -> jax.Array:
        """Returns skip + scale · x · gate, a residual sum with squeeze and excitation (Hu et al.
        2018).

        The gate is sigmoid(relu(m · K + b) · K' + b'), where m is the mean of x over H and W.

        Args:
          skip: (B, H, W, C).
          x: (B, H, W, C).
          reduce: (K (C, R), b (R,)), float32.
          expand: (K' (R, C), b' (C,)), float32.
          scale: a number.
          precision: precision of products.

        Returns:
          (B, H, W, C), dtype of x.
        """

    @abstractmethod
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
        """Applies the body of an inverted residual cell with fixed batch-norm statistics.

        It consists of norm, 1×1 convolution, norm, swish, depthwise convolution, norm, swish, 1×1
        convolution and norm (paper, section 3.1, figure 3a).

        Args:
          x: (B, H, W, C).
          kernels: (1, 1, C, E), (k, k, 1, E) with k odd, and (1, 1, E, O), dtype of x.
          norms: four pairs (gain, shift) of vectors, float32; a norm is gain · x + shift.
          stride: stride of the depthwise convolution, 1 or 2.
          upsample: whether to upsample the depthwise convolution's input by nearest neighbours.
          precision: precision of products.

        Returns:
          (B, H', W', O), dtype of x.
        """

    @abstractmethod
    def weight_norm(
        self, kernels: Sequence[jax.Array], log_scales: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """Returns exp(log_scale) · v / (‖v‖ + 1e-5) for each kernel v, with the norm of each output
        channel (Salimans & Kingma 2016, but with a log-scale as parameter).

        Args:
          kernels: a list of float32 (k, k, in, out), or stacks of them with a leading axis.
          log_scales: a list of (out,), or stacks of them with a leading axis.

        Returns:
          a list of arrays in the shapes of the kernels.
        """

    @abstractmethod
    def spectral_penalty(
        self, kernels: Any, vectors: Mapping[str, jax.Array], rounds: int
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """Computes the sum of the largest singular values of all convolutions, as (out × rest)
        matrices (paper, section 3.2), by power iteration in full float32.

        Args:
          kernels: kernels from `models.kernels.effective_kernels`, (k, k, in, out), stacked or not.
          vectors: vectors from the previous step, or from `regularizers.init_spectral_vectors`.
          rounds: number of rounds of power iteration, at least 1.

        Returns:
          the penalty, whose gradient passes through the kernels only; the kernels, which the model
          must use instead of the argument, so that both gradients are added; the new vectors.
        """

    @abstractmethod
    def unstack(self, tree: Any, length: int) -> list[Any]:
        """Splits a tree of arrays with a leading axis of size `length` into a list of trees."""

    @abstractmethod
    def global_norm(self, tree: Any) -> jax.Array:
        """The Euclidean norm, (), of all entries of a tree of arrays together."""

    @abstractmethod
    def optimizer_step(
        self, optimizer: Any, gradients: Any, state: Any, params: Any, accept: ArrayLike
    ) -> tuple[Any, Any]:
        """Applies an `optim.Optimizer`; returns (params, state), the old ones unless `accept`."""
