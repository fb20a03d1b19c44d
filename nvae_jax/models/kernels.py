"""The kernels that a model convolves with, made of its parameters all at once.

`layers.Conv` makes its own in the pass, one group of a scale after the other. Training needs them
for the spectral penalty too, and takes them from here: the groups' kernels are then normalised as
the stacks that the parameters come in, which is less to compile and to run.
"""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from nvae_jax.models.layers import Conv, PlainConv
from nvae_jax.models.nvae import NVAE
from nvae_jax.models.parameter_modules import describe_variables


def effective_kernels(model: NVAE, params: Mapping[str, Any]) -> dict[str, Any]:
    """Masked and weight-normalised kernels of all convolutions.

    Args:
      model: an `NVAE`.
      params: its parameters.

    Returns:
      the tree `params` with nothing left but `kernel` (k, k, in, out), groups stacked ahead.
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
    """`model` and `params`, so changed that it convolves with `kernels` as they are."""
    flat, given = traverse_util.flatten_dict(params), traverse_util.flatten_dict(kernels)
    flat = {path: array for path, array in flat.items() if path[-1] != "log_scale"}
    return model.clone(conv=PlainConv), traverse_util.unflatten_dict({**flat, **given})
