"""All operations in plain JAX: for TPUs, for several GPUs, and to read first."""

from dataclasses import dataclass

import jax
from jax import lax

from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import (
    convolution,
    depthwise,
    inverted_residual,
    normalization,
    optimizer,
    spectral,
    squeeze_excitation,
    weight_norm,
)


@dataclass(frozen=True)
class Portable(Ops):
    """What runs anywhere, on any number of devices."""

    def conv(self, x, kernel, *, stride=1, precision=None):
        return convolution.conv(x, kernel, stride=stride, precision=precision)

    def depthwise_conv(self, x, kernel, *, stride=1, precision=None):
        return depthwise.depthwise_conv(x, kernel, stride=stride, precision=precision)

    def upsample_depthwise_conv(self, x, kernel, *, precision=None):
        return depthwise.upsample_depthwise_conv(x, kernel, precision=precision)

    def batch_norm(self, x, scale, bias, epsilon, *, activation=None, center=None):
        options = dict(activation=activation, center=center)
        return normalization.batch_norm(x, scale, bias, epsilon, **options)

    def add_gated(self, skip, x, reduce, expand, scale, precision=None):
        return squeeze_excitation.add_gated(skip, x, reduce, expand, scale, precision)

    def inverted_residual(self, x, kernels, norms, *, stride=1, upsample=False, precision=None):
        options = dict(stride=stride, upsample=upsample, precision=precision)
        return inverted_residual.inverted_residual(self, x, kernels, norms, **options)

    def weight_norm(self, kernels, log_scales):
        return weight_norm.weight_norm(kernels, log_scales)

    def spectral_penalty(self, kernels, vectors, rounds):
        return spectral.spectral_penalty(kernels, vectors, rounds)

    def global_norm(self, tree):
        return optimizer.global_norm(tree)

    def optimizer_step(self, optimizer_, gradients, state, params, accept):
        return optimizer.optimizer_step(optimizer_, gradients, state, params, accept)

    def unstack(self, tree, length):
        leaves, structure = jax.tree.flatten(tree)
        # Not slices: the gradient of those is a sum of arrays of the whole size, one an entry.
        parts = [lax.split(leaf, [1] * length) for leaf in leaves]
        entries = [[part[i].squeeze(0) for part in parts] for i in range(length)]
        return [jax.tree.unflatten(structure, entry) for entry in entries]
