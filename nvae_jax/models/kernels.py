"""The kernels that a model convolves with, made of its parameters all at once.

`layers.Conv` makes its own in the pass, one group of a scale after the other. Training needs them
for the spectral penalty too, and takes them from here: the groups' kernels are then normalised as
the stacks that the parameters come in, which is less to compile and to run.
"""

from flax import traverse_util

from nvae_jax.models.flows import kernel_mask
from nvae_jax.models.layers import PlainConv, effective_kernel
from nvae_jax.ops.weight_norm import weight_norm


def effective_kernels(params, implementation=None):
    """Masked and weight-normalised kernels of all convolutions.

    Args:
      params: of an `NVAE` or a part of it.
      implementation: see `nvae_jax.ops.weight_norm`.

    Returns:
      the tree `params` with nothing left but `kernel` (k, k, in, out), groups stacked ahead.
    """
    flat = traverse_util.flatten_dict(params)
    # The kernels of dense layers have two axes, three when stacked.
    kernels = {p: array for p, array in flat.items() if p[-1] == "kernel" and array.ndim >= 4}
    for path, kernel in kernels.items():
        kernels[path] = effective_kernel(kernel, mask=kernel_mask(path, kernel.shape))
    log_scales = {path: (*path[:-1], "log_scale") for path in kernels}
    scaled = [path for path in kernels if log_scales[path] in flat]
    normalized = weight_norm(
        [kernels[path] for path in scaled],
        [flat[log_scales[path]] for path in scaled],
        implementation,
    )
    kernels.update(zip(scaled, normalized, strict=True))
    return traverse_util.unflatten_dict(kernels)


def with_kernels(model, params, kernels):
    """`model` and `params`, so changed that it convolves with `kernels` as they are."""
    flat, given = traverse_util.flatten_dict(params), traverse_util.flatten_dict(kernels)
    flat = {path: array for path, array in flat.items() if path[-1] != "log_scale"}
    return model.clone(conv=PlainConv), traverse_util.unflatten_dict({**flat, **given})
