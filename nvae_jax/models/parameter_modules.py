"""Finds the shape of every variable and the module that owns it."""

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from nvae_jax.ops.portable import Portable

if TYPE_CHECKING:  # nvae imports initialize, which imports this module
    from nvae_jax.models.nvae import NVAE


def describe_variables(
    model: "NVAE", image_shape: Sequence[int]
) -> tuple[dict[str, dict[tuple[str, ...], tuple[int, ...]]], dict[tuple[str, ...], Any]]:
    """Describes a model's variables without computing any array.

    Args:
      model: an `NVAE`.
      image_shape: (H, W, C).

    Returns:
      ({collection: {path: shape}}, with a leading axis for stacked groups; {path: module} of the
      unbound modules that own the variables).
    """
    # With loops over groups, one module per scale owns the variables of all its groups.
    looped, shape = model.clone(unroll=1, ops=Portable()), tuple(image_shape)
    return _describe_variables(looped, shape)  # pyright: ignore[reportArgumentType]: it is hashable


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
    # Sorted, because the order of a set differs between processes, and programs in another order
    # would not be found in the compilation cache.
    paths = sorted({path[:-1] for tree in flat.values() for path in tree})
    return {"batch_stats": {}, **flat}, {p: modules[p].clone(parent=None, name=None) for p in paths}


def _flat_shapes(tree):
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(tree)
    return {path: leaf.shape for path, leaf in flat.items()}
