"""A trained model as plain convolutions: weight norm and batch norm folded into kernels.

A batch norm with fixed statistics scales and shifts channels. Next to a convolution, with nothing
but it in between, it becomes part of that: always behind one, and ahead of one that sees a single
pixel (elsewhere the zeros around the image would have to be shifted too). That is all of an
inverted residual's four. The first of a residual cell stands ahead of an activation and stays, as a
scale and a shift.
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
    """A scale and a shift of channels, or nothing where the variables have none."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        train: bool = False,
        copies: int = 1,
        activation: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """Maps `x` (B, H, W, C) to the same shape."""
        scale, bias = (self.get_variable("params", name) for name in ("scale", "bias"))
        if scale is not None:
            x = x * per_channel(scale) + per_channel(bias)
        x = x.astype(self.dtype)
        return activation(x) if activation else x


def fold(model: NVAE, variables: VariableDict) -> tuple[NVAE, dict[str, Any]]:
    """Folds weight and batch normalisation into plain convolutions.

    Args:
      model: an `NVAE`.
      variables: its variables; running statistics are folded.

    Returns:
      a model and variables that give what the originals do without batch statistics, but for
      rounding. The variables have a collection `params` only.
    """
    kernels = jax.device_get(jax.jit(partial(effective_kernels, model))(variables["params"]))
    tree = _Folding(variables, traverse_util.flatten_dict(kernels))
    for path in sorted(tree.norms):
        if path[-1] == "norm_out":
            tree.fold_inverted_residual(path[:-1])
        elif path[-1] == "norm_1":
            tree.behind((*path[:-1], "conv_0"), path)
    return model.clone(conv=PlainConv, norm=PlainNorm), {"params": tree.params()}


class _Folding:
    """A model's arrays while they are folded, in float64. Stacked groups have a leading axis."""

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
        """All four norms of the cell body at the path `body`."""
        self.ahead((*body, "conv_expand"), (*body, "norm_in"))
        for name in ("expand", "depthwise"):
            self.behind((*body, f"conv_{name}"), (*body, f"norm_{name}"))
        self.behind((*body, "conv_project"), (*body, "norm_out"))

    def ahead(self, conv, norm):
        """The norm before a 1×1 convolution: scales its inputs."""
        scale, shift = self.norms.pop(norm)
        kernel = self.kernels[conv]
        self._add_bias(conv, np.einsum("...i,...hwio->...o", shift, kernel))
        self.kernels[conv] = kernel * scale[..., None, None, :, None]

    def behind(self, conv, norm):
        """The norm after a convolution: scales its outputs."""
        scale, shift = self.norms.pop(norm)
        self.kernels[conv] = self.kernels[conv] * scale[..., None, None, None, :]
        bias = self.others.pop((*conv, "bias"), np.zeros(()))
        self.others[*conv, "bias"] = bias * scale + shift

    def _add_bias(self, conv, value):
        self.others[*conv, "bias"] = self.others.get((*conv, "bias"), 0.0) + value

    def params(self):
        """The tree of parameters, float32."""
        flat = {**self.others, **{(*path, "kernel"): k for path, k in self.kernels.items()}}
        for path, (scale, shift) in self.norms.items():
            flat.update({(*path, "scale"): scale, (*path, "bias"): shift})
        flat = {path: np.asarray(array, np.float32) for path, array in flat.items()}
        return traverse_util.unflatten_dict(flat)
