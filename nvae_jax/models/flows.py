"""Flows of the posterior: additive autoregressive steps of volume 1 (paper, section 3.2)."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np

from nvae_jax.models.layers import Conv

HIDDEN_PER_LATENT = 6
# By name: whether a half turns the raster order around, and whether a convolution's mask is strict.
FLIPPED = {"forward": False, "backward": True}
STRICT = {"conv_in": True, "conv_depthwise": False, "conv_out": False}
# A lower initial log-scale of the last one makes the flow start close to the identity.
LOG_SCALE_SHIFT = {"conv_in": 0.0, "conv_depthwise": 0.0, "conv_out": -np.log(10.0)}


def causal_mask(
    shape: Sequence[int], *, strict: bool, flipped: bool, latent_channels: int
) -> np.ndarray:
    """0/1 mask for a kernel (k, k, in, out) that is causal in raster order.

    Taps before the centre are open, those after it are shut. At the centre, with consecutive
    hidden channels belonging to one latent channel, an output of latent channel i sees latent
    channels < i (strict) or <= i. A depthwise kernel (in = 1) sees its own channel there, unless
    strict. `flipped` turns the raster order around; channels keep theirs.
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
    # Latents are the narrow side; the channels of a depthwise kernel have no order.
    latents = min(shape[2:])
    return causal_mask(shape, strict=STRICT[convolution], flipped=flipped, latent_channels=latents)


class FlowHalf(nn.Module):
    """z ← z - μ(z), where μ at a position sees only positions (and latents) ahead of it."""

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
    """Two halves, the second in reversed raster order, so that every position sees every other."""

    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps z (B, h, w, z) to the same shape."""
        for name, flipped in FLIPPED.items():
            z = FlowHalf(flipped=flipped, conv=self.conv, name=name)(z)
        return z
