"""The modules that parameters belong to, which know how they begin and what is convolved with."""

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from nvae_jax.ops.portable import Portable

if TYPE_CHECKING:  # which itself begins with `initialize`
    from nvae_jax.models.nvae import NVAE


def describe_variables(
    model: "NVAE", image_shape: Sequence[int]
) -> tuple[dict[str, dict[tuple[str, ...], tuple[int, ...]]], dict[tuple[str, ...], Any]]:
    """What a model's variables are, without any array.

    Args:
      model: an `NVAE`.
      image_shape: (H, W, C).

    Returns:
      the shapes of its variables {collection: {path: shape}}, those of groups stacked on a leading
      axis; and {path: module} of the modules that own them, unbound.
    """
    # In loops, a module of each scale stands for all its groups.
    looped, shape = model.clone(unroll=1, ops=Portable()), tuple(image_shape)
    return _describe_variables(looped, shape)  # pyright: ignore[reportArgumentType]: it can be hashed


@cache  # tracing a pass of the model takes a second at published size
def _describe_variables(model, image_shape):
    modules = {}

    def record_module(call, args, kwargs, context):
        modules[context.module.path] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(record_module):
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        shapes = jax.eval_shape(partial(nn.Module.init, model), jax.random.key(0), images)
    flat = {collection: _flat_shapes(tree) for collection, tree in shapes.items()}
    # In order: with a set's, another in every process, no program would be found in the cache.
    paths = sorted({path[:-1] for tree in flat.values() for path in tree})
    return {"batch_stats": {}, **flat}, {p: modules[p].clone(parent=None, name=None) for p in paths}


def _flat_shapes(tree):
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(tree)
    return {path: leaf.shape for path, leaf in flat.items()}
