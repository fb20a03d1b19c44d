"""Normalizing flows of the posterior: volume-preserving autoregressive steps (paper, sec. 3.2)."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np

from nvae_jax.models.layers import Conv

HIDDEN_PER_LATENT = 6
FLIPPED = {"forward": False, "backward": True}  # whether a half reverses the raster order
STRICT = {"conv_in": True, "conv_depthwise": False, "conv_out": False}  # of the causal masks
# The lower initial log-scale of the last convolution makes the flow start close to the identity.
LOG_SCALE_SHIFT = {"conv_in": 0.0, "conv_depthwise": 0.0, "conv_out": -np.log(10.0)}


def causal_mask(
    shape: Sequence[int], *, strict: bool, flipped: bool, latent_channels: int
) -> np.ndarray:
    """Makes a 0/1 mask that makes a kernel (k, k, in, out) causal in raster order.

    Taps before the centre are 1 and those after it are 0. At the centre, consecutive hidden
    channels belong to one latent channel, and an output of latent channel i depends on the latent
    channels < i (strict) or <= i. A depthwise kernel (in = 1) depends there on its own channel
    unless strict.

    Args:
      shape: (k, k, in, out).
      strict: whether an output must not depend on its own position and channel.
      flipped: whether to reverse the raster order; the order of channels stays.
      latent_channels: number of latent channels.
    """
    k, _, fan_in, fan_out = shape
    mask = np.zeros((k * k, fan_in, fan_out), np.float32)
    centre = k * k // 2
    mask[:centre] = 1.0
    if fan_in == 1:
        mask[centre] = not strict
    else:
        source = np.arange(fan_in) // (fan_in // latent_channels)
        target = np.arange(fan_out) // (fan_out // latent_channels)
        before = np.less if strict else np.less_equal
        mask[centre] = before(source[:, None], target[None, :])
    mask = mask.reshape(shape)
    return mask[::-1, ::-1] if flipped else mask


def _mask(convolution, flipped, shape):
    # The smaller of in and out is the number of latent channels. (The mask of a depthwise kernel
    # does not depend on it.)
    latents = min(shape[2:])
    return causal_mask(shape, strict=STRICT[convolution], flipped=flipped, latent_channels=latents)


class FlowHalf(nn.Module):
    """z ← z - μ(z), where μ at a position depends only on earlier positions and channels."""

    flipped: bool
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps z (B, h, w, z) to the same shape; the log-determinant is 0."""
        latents = z.shape[-1]
        hidden = HIDDEN_PER_LATENT * latents

        def conv(features, kernel_size, name, **kwargs):
            mask, shift = partial(_mask, name, self.flipped), LOG_SCALE_SHIFT[name]
            kwargs.update(mask=mask, log_scale_shift=shift, name=name)
            return self.conv(features, kernel_size, **kwargs)

        mu = nn.elu(conv(hidden, 3, "conv_in", use_bias=False)(z))
        depthwise = conv(hidden, 5, "conv_depthwise", use_bias=False, depthwise=True)
        mu = nn.elu(nn.elu(depthwise(mu)))  # twice, as published
        return z - conv(latents, 1, "conv_out")(mu).astype(z.dtype)


class FlowPair(nn.Module):
    """Two halves, the second in reverse raster order: all positions depend on each other."""

    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps z (B, h, w, z) to the same shape."""
        for name, flipped in FLIPPED.items():
            z = FlowHalf(flipped=flipped, conv=self.conv, name=name)(z)
        return z
