"""Residual cells, skip(x) + 0.1 · SE(body(x)), and their kinds (paper, section 3.1, figure 3).

To add a kind, write a module that maps (x, train) to `features` channels and add a row to `BODIES`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from nvae_jax.models.layers import (
    BatchNorm,
    Conv,
    SqueezeExcitation,
    upsample_bilinear,
    upsample_nearest,
)
from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import Portable
from nvae_jax.ops.portable.normalization import swish

RESIDUAL_SCALE = 0.1
# Expansion factor of inverted residuals in the towers, and in pre- and postprocessing.
TOWER_EXPANSION, PROCESS_EXPANSION = 6, 3


class ResidualBody(nn.Module):
    """Two times [batch norm →] activation → 3×3 convolution.

    Attributes:
      features: number of output channels.
      resample: None, "down" or "up".
      expansion: not used; all bodies have the same signature.
      activation: the activation function.
      use_norm: whether to use batch norm.
      conv: factory of convolutions.
      norm: factory of batch norms.
    """

    features: int
    resample: str | None = None
    expansion: int = 1
    activation: Callable[[Any], Any] = swish
    use_norm: bool = True
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (B, H, W, C) to (B, H', W', features)."""
        for i in range(2):
            if self.use_norm:
                x = self.norm(name=f"norm_{i}")(x, train, activation=self.activation)
            else:
                x = self.activation(x)
            if i == 0 and self.resample == "up":
                x = upsample_nearest(x)
            stride = 2 if i == 0 and self.resample == "down" else 1
            # Without batch norm, the first batch determines the scale of the activations.
            conv = partial(self.conv, data_init=not self.use_norm, name=f"conv_{i}")
            x = conv(self.features, 3, stride=stride)(x)
        return x


class InvertedResidualBody(nn.Module):
    """An inverted residual (Sandler et al. 2018): expansion, 5×5 depthwise convolution and
    projection, with batch norm before, between and after them."""

    features: int
    resample: str | None = None
    expansion: int = TOWER_EXPANSION
    kernel_size: int = 5
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (B, H, W, C) to (B, H', W', features)."""
        conv = partial(self.conv, use_bias=False, weight_norm=False)
        hidden, up = self.expansion * x.shape[-1], self.resample == "up"
        expand = conv(hidden, 1, name="conv_expand")
        depthwise = conv(
            hidden,
            self.kernel_size,
            stride=2 if self.resample == "down" else 1,
            depthwise=True,
            upsample=up,
            name="conv_depthwise",
        )
        project = conv(self.features, 1, name="conv_project")
        norms = [self.norm(name=f"norm_{name}") for name in ("in", "expand", "depthwise", "out")]
        fixed = [None if train else norm.gain_and_shift() for norm in norms]
        if None not in fixed:
            return self._apply_with_fixed_norms(x, (expand, depthwise, project), fixed)
        # An up cell upsamples its input first. Everything before the depthwise convolution acts on
        # single pixels, so upsampling there gives the same result for a quarter of the work.
        copies = 4 if up else 1
        x = expand(norms[0](x, train, copies))
        x = self._convolve_between(norms[1], depthwise, norms[2], x, train, copies)
        return norms[3](project(x), train)

    def _convolve_between(self, before, depthwise, after, x, train, copies):
        """Norm, swish, depthwise convolution, norm and swish: one operation if there is one."""
        terms = [norm.batch_terms() if train else None for norm in (before, after)]
        if None not in terms:
            found = depthwise.ops.normalized_depthwise_conv(
                x.astype(depthwise.dtype),
                depthwise.get_variable("params", "kernel").astype(depthwise.dtype),
                *terms,
                before.epsilon,
                stride=depthwise.stride,
                upsample=depthwise.upsample,
                precision=depthwise.precision,
            )
            if found:
                y, (first, second) = found
                before.update(first, copies * x[..., 0].size)
                after.update(second, y[..., 0].size)
                return y
        x = depthwise(before(x, train, copies, swish))
        return after(x, train, activation=swish)

    def _apply_with_fixed_norms(self, x, convs, norms):
        depthwise, kernels = convs[1], [conv.get_variable("params", "kernel") for conv in convs]
        return depthwise.ops.inverted_residual(
            x.astype(depthwise.dtype),
            [kernel.astype(depthwise.dtype) for kernel in kernels],
            norms,
            stride=depthwise.stride,
            upsample=depthwise.upsample,
            precision=depthwise.precision,
        )


BODIES = {
    "residual": ResidualBody,
    "residual_bn_elu": partial(ResidualBody, activation=nn.elu),
    "residual_elu": partial(ResidualBody, activation=nn.elu, use_norm=False),
    "inverted_residual": InvertedResidualBody,
}


def body(kind: str) -> Callable[..., nn.Module]:
    """Returns the body factory of a kind of cell.

    Raises:
      ValueError: if the kind is unknown; the message lists the known ones.
    """
    if kind not in BODIES:
        raise ValueError(f"unknown cell {kind!r}; known: {', '.join(BODIES)}")
    return BODIES[kind]


class Cell(nn.Module):
    """One residual cell; `resample` "down" halves the resolution, "up" doubles it."""

    features: int
    kind: str = "residual"
    resample: str | None = None
    expansion: int = TOWER_EXPANSION
    squeeze_excitation: bool = True
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm
    # These two are used by squeeze and excitation.
    precision: Any = None
    ops: Ops = Portable()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (B, H, W, C) to (B, H', W', features)."""
        parts = dict(conv=self.conv, norm=self.norm)
        residual = body(self.kind)(
            self.features, self.resample, expansion=self.expansion, name="body", **parts
        )(x, train)
        if not self.squeeze_excitation:
            return self._skip(x) + RESIDUAL_SCALE * residual
        gated = SqueezeExcitation(RESIDUAL_SCALE, self.precision, self.ops, name="se")
        return gated(residual, self._skip(x))

    def _skip(self, x):
        if self.resample == "down":
            return SkipDown(self.features, conv=self.conv, name="skip")(x)
        if self.resample == "up":
            return SkipUp(self.features, conv=self.conv, name="skip")(x)
        return x


class SkipDown(nn.Module):
    """Halves the resolution: each pixel of a 2×2 block yields a quarter of the output channels."""

    features: int
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H/2, W/2, features)."""
        x = swish(x)
        quarter = self.features // 4
        widths = (quarter, quarter, quarter, self.features - 3 * quarter)
        corners = ((0, 0), (1, 1), (0, 1), (1, 0))  # (row, column) inside the block
        parts = [
            self.conv(width, 1, name=f"conv_{i}")(x[:, row::2, column::2])
            for i, (width, (row, column)) in enumerate(zip(widths, corners, strict=True))
        ]
        return jnp.concatenate(parts, axis=-1)


class SkipUp(nn.Module):
    """Doubles the resolution bilinearly and changes the width."""

    features: int
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, 2H, 2W, features)."""
        # A 1×1 convolution without bias commutes with upsampling, and is cheaper before it.
        return upsample_bilinear(self.conv(self.features, 1, use_bias=False, name="conv")(x))
