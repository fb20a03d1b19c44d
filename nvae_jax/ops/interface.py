"""What differs by platform: the operations that models and their penalties are made of.

`portable` has all of them in plain JAX. A platform's folder has a class of its own that puts faster
ones in their place, and can be deleted: `choice` decides which of them a run gets.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.lax import PrecisionLike
from jax.typing import ArrayLike

from nvae_jax.ops import compiler


class Ops(ABC):
    """The operations. Arrays are float32 or bfloat16 and sums are accumulated in float32.

    Instances are hashable and equal where they do the same: modules have them as an attribute.
    Everything can be differentiated, mapped by `vmap`, and is compiled in the function that calls.
    `precision` is that of products, as in `lax.dot`.
    """

    def problem(self) -> str | None:
        """Why these operations cannot run on this machine, as a phrase, or None."""
        return None

    def compiler_options(self, platform: str) -> dict[str, Any] | None:
        """Compiler options of a training step made of these operations; see `compiler.options`."""
        return compiler.options(platform, unrolled=True)

    @abstractmethod
    def conv(
        self, x: jax.Array, kernel: jax.Array, *, stride: int = 1, precision: PrecisionLike = None
    ) -> jax.Array:
        """Cross-correlates with (k - 1) / 2 zeros on every side.

        Args:
          x: (B, H, W, C).
          kernel: (k, k, C, O), k odd, dtype of x.
          stride: in both directions. The padding does not depend on it.

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
          stride: 1 or 2, in both directions. The padding does not depend on it.

        Returns:
          (B, ceil(H / stride), ceil(W / stride), C), dtype of x.

        Raises:
          ValueError: for shapes or a stride other than these.
        """

    @abstractmethod
    def upsample_depthwise_conv(
        self, x: jax.Array, kernel: jax.Array, *, precision: PrecisionLike = None
    ) -> jax.Array:
        """`depthwise_conv` of x repeated twice along H and W, (B, 2 H, 2 W, C)."""

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
          scale, bias: (C,), float32.
          epsilon: added to the variance.
          activation: applied to what is normalised; None: nothing.
          center: (C,), about where the mean is, such as a running mean: mean and variance are sums
            of one pass over x - center, of which nothing cancels then. None: 0.

        Returns:
          (..., C), dtype of x; the mean (C,) and the biased variance (C,), through which no
          gradient passes.
        """

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
        """skip + scale · x · gate: squeeze and excitation (Hu et al. 2018) in a residual sum.

        Args:
          skip, x: (B, H, W, C).
          reduce: (K (C, R), b (R,)), float32.
          expand: (K' (R, C), b' (C,)), float32. The gate is sigmoid(relu(means · K + b) · K' + b')
            of the means of x over H and W.
          scale: a number.

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
        """The body of an inverted residual cell whose statistics are fixed: norm, 1×1 convolution,
        norm, swish, depthwise convolution, norm, swish, 1×1 convolution, norm (paper, section 3.1,
        figure 3a).

        Args:
          x: (B, H, W, C).
          kernels: (1, 1, C, E), (k, k, 1, E) with k odd, and (1, 1, E, O), dtype of x.
          norms: four pairs (gain, shift) of vectors, float32: gain · x + shift.
          stride: of the depthwise convolution, 1 or 2.
          upsample: the depthwise convolution sees its input doubled by nearest neighbours.

        Returns:
          (B, H', W', O), dtype of x.
        """

    @abstractmethod
    def weight_norm(
        self, kernels: Sequence[jax.Array], log_scales: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """exp(log_scale) · v / (‖v‖ + 1e-5), the norm being that of each output channel (Salimans &
        Kingma 2016, with the log of the scale as parameter).

        Args:
          kernels: a list of v (k, k, in, out), stacked ones with a leading axis; float32.
          log_scales: a list of (out,), stacked ones with a leading axis.

        Returns:
          a list of arrays in the shapes of the kernels.
        """

    @abstractmethod
    def spectral_penalty(
        self, kernels: Any, vectors: Mapping[str, jax.Array], rounds: int
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        """The sum of all convolutions' largest singular values, as (out × rest) matrices (paper,
        section 3.2), by power iteration in full float32.

        Args:
          kernels: from `models.kernels.effective_kernels`, (k, k, in, out), stacked or not.
          vectors: what the last step left, or `regularizers.init_spectral_vectors`.
          rounds: of power iteration, at least 1.

        Returns:
          the penalty, with gradient through the kernels only; the kernels, to be used from here on
          (the gradient of the penalty is added to that of what they are used for); the new vectors.
        """

    @abstractmethod
    def unstack(self, tree: Any, length: int) -> list[Any]:
        """The `length` entries of a tree of arrays with a leading axis, as a list of trees."""

    @abstractmethod
    def global_norm(self, tree: Any) -> jax.Array:
        """The Euclidean norm of all entries of a tree of arrays."""

    @abstractmethod
    def optimizer_step(
        self, optimizer: Any, gradients: Any, state: Any, params: Any, accept: ArrayLike
    ) -> tuple[Any, Any]:
        """A step of an `optim.Optimizer`: (params, state), the old ones where not `accept`."""
