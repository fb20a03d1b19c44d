"""A model's first variables, without compiling one random generator for every parameter.

`model.init` is right too, and slow: it draws each parameter on its own. Here one draw serves all
kernels, biases and the top-down start, and the modules' own initialisers compute the rest from it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nvae_jax.models.layers import fan_in


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
    shapes = jax.eval_shape(lambda: model.init(latent_key, images))["params"]
    params = _draw(draw_key, traverse_util.flatten_dict(shapes))
    _, variables = model.apply(
        {"params": traverse_util.unflatten_dict(params)},
        images,
        mutable=["params", "batch_stats"],
        rngs={"params": latent_key, "latent": latent_key},
    )
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


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
