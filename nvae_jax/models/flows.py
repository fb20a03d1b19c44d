"""Flows of the posterior: additive autoregressive steps of volume 1 (paper, section 3.2)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import numpy as np

from nvae_jax.models.layers import Conv

HIDDEN_PER_LATENT = 6


def causal_mask(shape, *, strict, flipped, latent_channels):
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


class FlowHalf(nn.Module):
    """z ← z - μ(z), where μ at a position sees only positions (and latents) ahead of it."""

    flipped: bool
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, z):
        """Maps z (B, h, w, z) to the same shape; the log-determinant is 0."""
        latents = z.shape[-1]
        hidden = HIDDEN_PER_LATENT * latents
        mask = partial(causal_mask, flipped=self.flipped, latent_channels=latents)
        strict, inclusive = partial(mask, strict=True), partial(mask, strict=False)
        conv = partial(self.conv, use_bias=False)
        mu = nn.elu(conv(hidden, 3, mask=strict, name="conv_in")(z))
        depthwise = conv(hidden, 5, depthwise=True, mask=inclusive, name="conv_depthwise")
        mu = nn.elu(nn.elu(depthwise(mu)))  # twice, as published
        # A lower initial log-scale makes the flow start close to the identity.
        last = self.conv(latents, 1, mask=inclusive, log_scale_shift=-np.log(10.0), name="conv_out")
        return z - last(mu).astype(z.dtype)


class FlowPair(nn.Module):
    """Two halves, the second in reversed raster order, so that every position sees every other."""

    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(self, z):
        """Maps z (B, h, w, z) to the same shape."""
        z = FlowHalf(flipped=False, conv=self.conv, name="forward")(z)
        return FlowHalf(flipped=True, conv=self.conv, name="backward")(z)
