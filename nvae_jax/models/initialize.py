"""Initialises a model's variables quickly.

Flax's `Module.init` takes minutes, because it runs the model and compiles a random generator for
every parameter. Here all random parameters share one draw, from which their modules compute the
initial values, for all groups of a scale at once.
"""

import math
from collections import defaultdict
from functools import cache, partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.typing import VariableDict
from jax.core import Tracer

from nvae_jax.models.parameter_modules import describe_variables
from nvae_jax.ops import compiler

if TYPE_CHECKING:
    from nvae_jax.models.nvae import NVAE


def compiled(model: "NVAE", key: jax.Array, images: jax.Array | np.ndarray) -> VariableDict:
    """Calls `initialize` compiled, unless an outer `jit` compiles it already."""
    if any(isinstance(value, Tracer) for value in (key, images)):
        return initialize(model, key, images)
    if not model.needs_data_init:  # one program then serves every batch size
        images = np.zeros((1, *images.shape[1:]), np.float32)
    platform = jax.default_backend()
    program = _program(model, platform)  # pyright: ignore[reportArgumentType]: it is hashable
    return program(key, images)


@cache
def _program(model, platform):
    options = compiler.options(platform, runs_once=True)
    return jax.jit(partial(initialize, model), compiler_options=options)


def initialize(model: "NVAE", key: jax.Array, images: jax.Array | np.ndarray) -> VariableDict:
    """Initialises the variables of a model. Use it under `jit`; see `compiled`.

    Args:
      model: an `NVAE`.
      key: a PRNG key.
      images: (B, H, W, C) in [0, 1]; values and batch size matter only if `model.needs_data_init`.

    Returns:
      {"params": ..., "batch_stats": ...}.
    """
    draw_key, latent_key = jax.random.split(key)
    shapes, modules = describe_variables(model, images.shape[1:])
    values = _initial_values(draw_key, {**shapes["params"], **shapes["batch_stats"]}, modules)
    variables = {
        collection: traverse_util.unflatten_dict({p: values[p] for p in tree if p in values})
        for collection, tree in shapes.items()
    }
    if model.needs_data_init or shapes["params"].keys() - values.keys():
        # Parameters of modules without `initial_values` are initialised by running the model.
        rngs = {"params": latent_key, "latent": latent_key}
        # Groups run in loops, because unrolling them would only make compilation longer.
        _, changed = model.clone(unroll=1).apply(variables, images, mutable=["params"], rngs=rngs)
        variables = {**variables, **changed}
    return variables


def _initial_values(key, shapes, modules) -> dict[tuple[str, ...], jax.Array]:
    """Computes the initial values of variables.

    Args:
      key: a PRNG key.
      shapes: {path: shape} of the variables.
      modules: {path: module} of the modules that own them.

    Returns:
      {path: array} of the variables whose modules have the method `initial_values`.
    """
    modules = {path: m for path, m in modules.items() if hasattr(m, "initial_values")}
    by_module, draws = defaultdict(dict), defaultdict(dict)
    for path, shape in shapes.items():
        by_module[path[:-1]][path[-1]] = shape
    random = sorted(
        (*path, name)
        for path, module in modules.items()
        for name in module.RANDOM
        if name in by_module[path]
    )
    sizes = [math.prod(shapes[path]) for path in random]
    parts = jnp.split(jax.random.uniform(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    for path, part in zip(random, parts, strict=True):
        draws[path[:-1]][path[-1]] = part.reshape(shapes[path])
    return {
        (*path, name): value
        for path, module in modules.items()
        for name, value in module.initial_values(by_module[path], draws[path]).items()
    }
