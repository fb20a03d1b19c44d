"""Computes all effective kernels of a model from its parameters at once.

During a pass, `layers.Conv` computes its own kernel, one group of a scale after the other. Training
needs the kernels for the spectral penalty too, so it computes them here: the kernels of a scale's
groups are normalised as one stacked array, which compiles and runs faster.
"""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from nvae_jax.models.layers import Conv, PlainConv
from nvae_jax.models.nvae import NVAE
from nvae_jax.models.parameter_modules import describe_variables


def effective_kernels(model: NVAE, params: Mapping[str, Any]) -> dict[str, Any]:
    """Computes the masked and weight-normalised kernels of all convolutions.

    Args:
      model: an `NVAE`.
      params: its parameters.

    Returns:
      the tree `params` reduced to the arrays `kernel` (k, k, in, out), with a leading axis for
      stacked groups.
    """
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
    size, channels = model.hierarchy.image_size, params["stem"]["kernel"].shape[-2]
    _, modules = describe_variables(model, (size, size, channels))
    convs = {path: module for path, module in modules.items() if isinstance(module, Conv)}
    kernels = {path: conv.masked(flat[*path, "kernel"]) for path, conv in convs.items()}
    scaled = sorted(path for path, conv in convs.items() if conv.weight_norm)
    log_scales = [flat[*path, "log_scale"] for path in scaled]
    normalized = model.ops.weight_norm([kernels[path] for path in scaled], log_scales)
    kernels.update(zip(scaled, normalized, strict=True))
    return traverse_util.unflatten_dict({(*p, "kernel"): kernel for p, kernel in kernels.items()})


def with_kernels(
    model: NVAE, params: Mapping[str, Any], kernels: Mapping[str, Any]
) -> tuple[NVAE, dict[str, Any]]:
    """Returns a model and parameters that convolve with the given `kernels` directly."""
    flat, given = traverse_util.flatten_dict(params), traverse_util.flatten_dict(kernels)
    flat = {path: array for path, array in flat.items() if path[-1] != "log_scale"}
    return model.clone(conv=PlainConv), traverse_util.unflatten_dict({**flat, **given})
