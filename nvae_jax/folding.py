"""Folds weight norm and batch norm of a trained model into plain convolution kernels.

A batch norm with fixed statistics scales and shifts channels. It can be folded into a convolution
directly before it, and into a 1×1 convolution directly after it (for larger kernels the zero
padding would have to be shifted too). This removes all four norms of an inverted residual. The
first norm of a residual cell is followed by an activation, so it stays, as a scale and a shift.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from flax.typing import VariableDict

from nvae_jax.models.kernels import effective_kernels
from nvae_jax.models.layers import BatchNorm, PlainConv, per_channel
from nvae_jax.models.nvae import NVAE


class PlainNorm(BatchNorm):
    """Scales and shifts channels; the identity if the variables have no scale."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool = False,
        copies: int = 1,
        activation: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Applies the scale, the shift and then `activation` to `x` (B, H, W, C)."""
        scale, bias = (self.get_variable("params", name) for name in ("scale", "bias"))
        if scale is not None:
            x = x * per_channel(scale) + per_channel(bias)
        x = x.astype(self.dtype)
        return activation(x) if activation else x


def fold(model: NVAE, variables: VariableDict) -> tuple[NVAE, dict[str, Any]]:
    """Folds weight and batch normalisation into plain convolutions.

    Args:
      model: an `NVAE`.
      variables: its variables, with the running statistics to fold.

    Returns:
      a model and its variables, which have only the collection `params`. Up to rounding they
      compute the same as the originals with `train=False`.
    """
    kernels = jax.device_get(jax.jit(partial(effective_kernels, model))(variables["params"]))
    tree = _Folding(variables, traverse_util.flatten_dict(kernels))
    for path in sorted(tree.norms):
        if path[-1] == "norm_out":
            tree.fold_inverted_residual(path[:-1])
        elif path[-1] == "norm_1":
            tree.fold_after((*path[:-1], "conv_0"), path)
    return model.clone(conv=PlainConv, norm=PlainNorm), {"params": tree.params()}


class _Folding:
    """The arrays of a model during folding, in float64. Stacked groups have a leading axis."""

    def __init__(self, variables, kernels):
        arrays: Any = jax.device_get(variables)
        flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(arrays["params"])
        stats: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(
            arrays.get("batch_stats", {})
        )
        self.norms = {}
        for path in {path[:-1]: None for path in stats}:
            var = np.float64(stats[*path, "var"])
            scale = flat.pop((*path, "scale")) / np.sqrt(var + BatchNorm.epsilon)
            shift = flat.pop((*path, "bias")) - np.float64(stats[*path, "mean"]) * scale
            self.norms[path] = (scale, shift)
        self.kernels = {path[:-1]: np.float64(kernel) for path, kernel in kernels.items()}
        self.others = {
            path: array
            for path, array in flat.items()
            if path[-1] != "log_scale" and not (path[:-1] in self.kernels and path[-1] == "kernel")
        }

    def fold_inverted_residual(self, body):
        """Folds all four norms of the cell body at the path `body`."""
        self.fold_before((*body, "conv_expand"), (*body, "norm_in"))
        for name in ("expand", "depthwise"):
            self.fold_after((*body, f"conv_{name}"), (*body, f"norm_{name}"))
        self.fold_after((*body, "conv_project"), (*body, "norm_out"))

    def fold_before(self, conv, norm):
        """Folds a norm into the 1×1 convolution that follows it."""
        scale, shift = self.norms.pop(norm)
        kernel = self.kernels[conv]
        self._add_bias(conv, np.einsum("...i,...hwio->...o", shift, kernel))
        self.kernels[conv] = kernel * scale[..., None, None, :, None]

    def fold_after(self, conv, norm):
        """Folds a norm into the convolution that precedes it."""
        scale, shift = self.norms.pop(norm)
        self.kernels[conv] = self.kernels[conv] * scale[..., None, None, None, :]
        bias = self.others.pop((*conv, "bias"), np.zeros(()))
        self.others[*conv, "bias"] = bias * scale + shift

    def _add_bias(self, conv, value):
        self.others[*conv, "bias"] = self.others.get((*conv, "bias"), 0.0) + value

    def params(self):
        """The folded parameters as a tree of float32 arrays."""
        flat = {**self.others, **{(*path, "kernel"): k for path, k in self.kernels.items()}}
        for path, (scale, shift) in self.norms.items():
            flat.update({(*path, "scale"): scale, (*path, "bias"): shift})
        flat = {path: np.asarray(array, np.float32) for path, array in flat.items()}
        return traverse_util.unflatten_dict(flat)
