"""A model's first variables, without compiling one random generator for every parameter.

`model.init` is right too, and slow: it draws each parameter on its own, in a pass of the model.
Here one draw serves all kernels, biases and the top-down start, and what follows from it or is
constant is made for all groups of a scale at once, by the same functions as in the modules.
"""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nvae_jax.models.flows import kernel_mask, log_scale_shift
from nvae_jax.models.layers import NORM_START, fan_in, first_log_scale, norm_start


def initialize(model, key, images):
    """Fresh variables of `model`; jit it.

    Args:
      model: an `NVAE`.
      key: a PRNG key.
      images: (B, H, W, C) in [0, 1]. Values and batch size matter only if `model.needs_data_init`.

    Returns:
      {"params": ..., "batch_stats": ...}.
    """
    draw_key, latent_key = jax.random.split(key)
    # The scans are kept as loops: unrolling them would only make compilation longer.
    model = model.clone(unroll=1)
    shapes = {
        collection: traverse_util.flatten_dict(tree)
        for collection, tree in _shapes(model, images.shape[1:]).items()
    }
    stats = {path: norm_start(path[-1], s.shape) for path, s in shapes["batch_stats"].items()}
    flat = {"params": _params(draw_key, shapes["params"]), "batch_stats": stats}
    variables = {name: traverse_util.unflatten_dict(arrays) for name, arrays in flat.items()}
    if model.needs_data_init or flat["params"].keys() != shapes["params"].keys():
        # Parameters that are not known here come from the initialisers of their modules.
        rngs = {"params": latent_key, "latent": latent_key}
        _, changed = model.apply(variables, images, mutable=["params"], rngs=rngs)
        variables = {**variables, **changed}
    return variables


@cache
def _shapes(model, image_shape):
    """The shapes of the variables, of both collections. Kept: tracing a pass of the model takes a
    second at published size, and who makes a state asks for its shapes first."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape))))
    return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}


def _params(key, shapes):
    """Those of the parameters {path: shape} that are drawn, follow from others, or are constant."""
    params = _draw(key, shapes)
    for path, s in shapes.items():
        kernel_path = (*path[:-1], "kernel")
        if path[-1] == "log_scale":
            kernel = params[kernel_path]
            mask, shift = kernel_mask(kernel_path, kernel.shape), log_scale_shift(kernel_path)
            params[path] = first_log_scale(kernel, mask, shift)
        elif path not in params and path[-1] in NORM_START:
            params[path] = norm_start(path[-1], s.shape)
    return params


def _draw(key, shapes):
    """The random parameters among `shapes` {path: shape}, cut from one uniform draw."""
    random = {path: s.shape for path, s in sorted(shapes.items()) if _is_random(path, shapes)}
    sizes = [math.prod(shape) for shape in random.values()]
    parts = jnp.split(jax.random.uniform(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    return {
        path: _spread(part.reshape(shape), path, shapes)
        for part, (path, shape) in zip(parts, random.items(), strict=True)
    }


def _is_random(path, shapes):
    kernel = (*path[:-1], "kernel")
    return path[-1] in ("kernel", "start") or (path[-1] == "bias" and kernel in shapes)


def _spread(unit, path, shapes):
    """Uniform [0, 1) draws onto the parameter's own interval."""
    if path[-1] == "start":
        return unit
    return (2.0 * unit - 1.0) / math.sqrt(fan_in(shapes[(*path[:-1], "kernel")].shape))
