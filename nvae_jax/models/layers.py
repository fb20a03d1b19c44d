"""Weight-normalised convolution, batch norm, squeeze-excitation and resampling."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax.models.remat import name_conv_output
from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import Portable
from nvae_jax.ops.portable.normalization import affine, coefficients
from nvae_jax.ops.portable.weight_norm import kernel_norm, weight_norm

# The standard deviation of a convolution's output after data-dependent initialisation.
DATA_INIT_SCALE = 0.2


def fan_in(kernel_shape: Sequence[int]) -> int:
    """The number of inputs per output of a kernel (k, k, in, out) or (in, out), stacked or not."""
    trailing = kernel_shape[-4:] if len(kernel_shape) >= 4 else kernel_shape[-2:]
    return math.prod(trailing[:-1])


def fan_in_uniform(key: jax.Array, shape: Sequence[int], fan_in: int) -> jax.Array:
    """Draws uniformly from ±1/sqrt(fan_in): the initialiser of all kernels and biases."""
    limit = 1.0 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -limit, limit)


def fan_in_from_unit(unit: jax.Array, fan_in: int) -> jax.Array:
    """Scales numbers that are uniform on [0, 1) to the distribution of `fan_in_uniform`."""
    return (2.0 * unit - 1.0) / math.sqrt(fan_in)


def per_channel(vector: jax.Array) -> jax.Array:
    """Reshapes a vector (C,) so that it broadcasts with (B, H, W, C) and kernels (k, k, in, C);
    stacked vectors (groups, C) broadcast with stacked kernels."""
    return vector[..., None, None, None, :]


class Conv(nn.Module):
    """A k×k convolution with (k-1)/2 zeros on every side, weight-normalised by default.

    Attributes:
      features: number of output channels.
      kernel_size: k.
      stride: stride in both directions.
      depthwise: whether each channel has a kernel of its own; `features` must then be the number of
        input channels.
      upsample: whether to upsample the input by nearest neighbours first (depthwise only).
      use_bias: whether to add a bias.
      weight_norm: whether the kernel is weight-normalised.
      mask: function from the kernel's shape (k, k, in, out) to a 0/1 array that multiplies it.
      log_scale_shift: constant added to the initial log-scale.
      data_init: whether the batch given to `init` determines log-scale and bias, so that each
        output channel has mean 0 and standard deviation 1/5 (Salimans & Kingma 2016).
      dtype: dtype of the computation.
      precision: precision of products, as in `lax.dot`.
      ops: the operations to use.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    depthwise: bool = False
    upsample: bool = False
    use_bias: bool = True
    weight_norm: bool = True
    mask: Callable[[tuple[int, ...]], np.ndarray] | None = None
    log_scale_shift: float = 0.0
    data_init: bool = False
    dtype: Any = jnp.float32
    precision: Any = None
    ops: Ops = Portable()

    RANDOM: ClassVar = ("kernel", "bias")  # parameters with random initial values

    def initial_values(
        self, shapes: Mapping[str, Sequence[int]], draws: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Computes the initial values of this module's variables.

        Args:
          shapes: {name: shape}, with a leading axis for stacked groups.
          draws: {name: array} of numbers uniform on [0, 1) for the names in `RANDOM`.

        Returns:
          {name: initial value}.
        """
        limits = fan_in(shapes["kernel"])
        values = {name: fan_in_from_unit(unit, limits) for name, unit in draws.items()}
        if "log_scale" in shapes:
            values["log_scale"] = self._initial_log_scale(values["kernel"])
        return values

    def masked(self, kernel: jax.Array) -> jax.Array:
        """Multiplies a kernel (k, k, in, out), or a stack of them, by the mask, if there is one."""
        if self.mask is None:
            return kernel
        mask = self.mask(kernel.shape[-4:])
        return kernel * mask.reshape((1,) * (kernel.ndim - 4) + mask.shape)

    def _initial_log_scale(self, kernel):
        """The log-scale at which the normalised kernel has almost the same norms as the draw."""
        return jnp.log(kernel_norm(self.masked(kernel)) + 0.01) + self.log_scale_shift

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves `x` (B, H, W, C) to (B, H/stride, W/stride, features) in `dtype`."""
        kernel = self._kernel(x.shape[-1])
        y = self._convolve(x, kernel)
        if self.use_bias:
            bias = self.param("bias", fan_in_uniform, (self.features,), fan_in(kernel.shape))
            y = y + per_channel(bias.astype(self.dtype))
        if self.data_init and self.is_mutable_collection("params"):
            y = self._init_from_data(y)
        return y

    def _kernel(self, channels):
        per_group = 1 if self.depthwise else channels
        shape = (self.kernel_size, self.kernel_size, per_group, self.features)
        kernel = self.param("kernel", fan_in_uniform, shape, fan_in(shape))
        if not self.weight_norm:
            return self.masked(kernel)
        log_scale = self.param("log_scale", lambda _: self._initial_log_scale(kernel))
        return weight_norm([self.masked(kernel)], [log_scale])[0]

    def _convolve(self, x, kernel):
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return name_conv_output(self._apply(self._operation(), x, kernel))

    def _operation(self):
        """The convolution as a function of (x, kernel)."""
        if self.upsample:
            return partial(self.ops.upsample_depthwise_conv, precision=self.precision)
        convolve = self.ops.depthwise_conv if self.depthwise else self.ops.conv
        return partial(convolve, stride=self.stride, precision=self.precision)

    def _apply(self, convolve, x, kernel):
        return convolve(x, kernel)

    def _init_from_data(self, y):
        mean = y.mean((0, 1, 2))
        gain = DATA_INIT_SCALE / (y.std((0, 1, 2)) + 1e-5)
        log_scale, bias = (self.get_variable("params", name) for name in ("log_scale", "bias"))
        self.put_variable("params", "log_scale", log_scale + jnp.log(gain))
        self.put_variable("params", "bias", (bias - mean) * gain)
        return (y - per_channel(mean)) * per_channel(gain)


class PlainConv(Conv):
    """A convolution without weight norm and mask, and with a bias if the variables have one.

    Attributes:
      apply_kernel: (convolve, x, kernel) -> convolve(x, kernel) for sharded kernels; None for
        kernels that every device has.
    """

    apply_kernel: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves `x` (B, H, W, C) to (B, H/stride, W/stride, features) in `dtype`."""
        kernel, bias = (self.get_variable("params", name) for name in ("kernel", "bias"))
        y = self._convolve(x, kernel)
        return y if bias is None else y + per_channel(bias.astype(self.dtype))

    def _apply(self, convolve, x, kernel):
        apply = self.apply_kernel
        return apply(convolve, x, kernel) if apply else convolve(x, kernel)


class BatchNorm(nn.Module):
    """Batch norm over (B, H, W), with the statistics in float32.

    Under `jit` with a sharded batch the statistics are those of the global batch. The running
    variance averages the unbiased batch variance; normalisation uses the biased one.

    Attributes:
      momentum: weight of the batch in the running statistics; with 1 they become the batch's own.
      epsilon: constant added to the variance.
      groups: number of equal, consecutive parts of the batch that are normalised separately. With
        more than one, the updated running statistics are (groups, C); `steps.training_loss`
        averages them for all batch norms at once, which is cheaper.
      dtype: dtype of the output.
      ops: the operations to use.
    """

    momentum: float = 0.05
    epsilon: float = 1e-5
    groups: int = 1
    dtype: Any = jnp.float32
    ops: Ops = Portable()

    RANDOM: ClassVar = ()

    def initial_values(
        self, shapes: Mapping[str, Sequence[int]], draws: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Computes initial values as `Conv.initial_values`, including the running statistics."""
        del draws
        values = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
        return {name: jnp.full(shape, values[name], jnp.float32) for name, shape in shapes.items()}

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool,
        copies: int = 1,
        activation: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Normalises `x` (B, H, W, C) and applies `activation`.

        Args:
          x: (B, H, W, C).
          train: whether to use batch statistics instead of the running ones.
          copies: number of times that each value counts in the unbiased variance: 4 if `x` will be
            upsampled by nearest neighbours, otherwise 1.
          activation: activation function, or None.
        """
        shape = (x.shape[-1],)

        def initial(name):
            return self.initial_values({name: shape}, {})[name]

        scale, bias = (self.param(name, lambda _, n=name: initial(n)) for name in ("scale", "bias"))
        running_mean, running_var = (
            self.variable("batch_stats", name, initial, name) for name in ("mean", "var")
        )
        if not train:
            moments = running_mean.value, running_var.value
            y = affine(x, *coefficients(scale, bias, *moments, self.epsilon)).astype(self.dtype)
            return activation(y) if activation else y
        y, *moments = self._normalize_batch(x, scale, bias, activation, running_mean.value)
        if not self.is_initializing():
            self.update(moments, copies * x[..., 0].size)
        return y.astype(self.dtype)

    def batch_terms(self) -> tuple[jax.Array, jax.Array, jax.Array] | None:
        """Scale, bias and running mean (C,), with which `Ops.batch_norm` normalises a batch; None
        if the statistics of parts of the batch are separate, or there are no variables yet."""
        scale, bias = (self.get_variable("params", name) for name in ("scale", "bias"))
        mean = self.get_variable("batch_stats", "mean")
        return None if self.groups > 1 or mean is None else (scale, bias, mean)

    def update(self, moments: Sequence[jax.Array], values: int) -> None:
        """Moves the running statistics towards those of a batch, if they can change.

        Args:
          moments: mean and biased variance (C,).
          values: number of values of each channel.
        """
        if not self.is_mutable_collection("batch_stats"):
            return
        count = values // self.groups
        unbiased = moments[1] * (count / max(count - 1, 1))
        for name, batch in (("mean", moments[0]), ("var", unbiased)):
            running = jnp.broadcast_to(self.get_variable("batch_stats", name), batch.shape)
            moved = running + self.momentum * (batch - running)
            self.put_variable("batch_stats", name, moved)

    def gain_and_shift(self) -> tuple[jax.Array, jax.Array] | None:
        """The gain and the shift (C,) of batch norm with the running statistics, or None if the
        variables have none."""
        scale, bias = (self.get_variable("params", name) for name in ("scale", "bias"))
        mean, var = (self.get_variable("batch_stats", name) for name in ("mean", "var"))
        return None if mean is None else coefficients(scale, bias, mean, var, self.epsilon)

    def _normalize_batch(self, x, scale, bias, activation, center):
        def normalize(x):
            options = dict(activation=activation, center=center)
            return self.ops.batch_norm(x, scale, bias, self.epsilon, **options)

        if self.groups == 1:
            return normalize(x)
        parts = x.reshape(self.groups, -1, *x.shape[1:])
        y, mean, var = jax.vmap(normalize)(parts)
        return y.reshape(x.shape), mean, var


class SqueezeExcitation(nn.Module):
    """Scales channels by a gate computed from their means (Hu et al. 2018).

    Attributes:
      scale: factor of the gated channels.
      precision: precision of products, as in `lax.dot`.
      ops: the operations to use.
    """

    scale: float = 1.0
    precision: Any = None
    ops: Ops = Portable()

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
        """Returns skip + scale · gated x, for arrays (B, H, W, C)."""
        channels = x.shape[-1]
        hidden = max(channels // 16, 4)
        reduce = Dense(hidden, name="reduce")(channels)
        expand = Dense(channels, name="expand")(hidden)
        return self.ops.add_gated(skip, x, reduce, expand, self.scale, self.precision)


class Dense(nn.Module):
    """The parameters of a dense layer, with the same initialiser as convolutions."""

    features: int

    RANDOM: ClassVar = ("kernel", "bias")

    def initial_values(
        self, shapes: Mapping[str, Sequence[int]], draws: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Computes initial values as `Conv.initial_values`."""
        return {
            name: fan_in_from_unit(unit, fan_in(shapes["kernel"])) for name, unit in draws.items()
        }

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        """Returns the kernel (inputs, features) and the bias (features,)."""
        shape = (inputs, self.features)
        kernel = self.param("kernel", fan_in_uniform, shape, fan_in(shape))
        return kernel, self.param("bias", fan_in_uniform, (self.features,), fan_in(shape))


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Upsamples (B, H, W, C) by repeating each pixel in a 2×2 block."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def upsample_bilinear(x: jax.Array) -> jax.Array:
    """Upsamples (B, H, W, C) bilinearly by 2 with aligned corners: output i is at the input
    coordinate i·(n-1)/(2n-1)."""
    return _double(_double(x, 1), 2)


def _double(x, axis):
    """Upsamples one axis of size n linearly by 2.

    Output 2j is at the input coordinate j - j/(2n-1); the outputs 2j + 1 are its mirror image. It
    is written as weighted sums of neighbours, whose gradient is of the same form, because some
    compilers cannot compile a product with a matrix of weights.
    """
    n = x.shape[axis]
    shape = [n if a == axis else 1 for a in range(x.ndim)]
    ahead = (np.arange(n, dtype=np.float32) / (2 * n - 1)).reshape(shape)
    behind = np.flip(ahead)
    exact = x.astype(jnp.float32)
    even = exact * (1 - ahead) + _shifted(exact, axis, 1) * ahead
    odd = exact * (1 - behind) + _shifted(exact, axis, -1) * behind
    both = jnp.stack([even, odd], axis + 1).astype(x.dtype)
    return both.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def _shifted(x, axis, by):
    """Shifts x by one entry forward (1) or backward (-1) along an axis and fills in a zero."""
    padding = [(by, -by, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)]
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
