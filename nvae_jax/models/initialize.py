"""A model's first variables, without compiling one random generator for every parameter.

Flax's `Module.init` is right too, and takes minutes: it draws each parameter on its own, in a pass
of the model. Here one draw serves all parameters that are random, and the modules that own them
make their first values of it, for all groups of a scale at once.
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
    """What `initialize` gives, compiled here unless an outer `jit` compiles it."""
    if any(isinstance(value, Tracer) for value in (key, images)):
        return initialize(model, key, images)
    if not model.needs_data_init:  # so that one program serves every batch size
        images = np.zeros((1, *images.shape[1:]), np.float32)
    platform = jax.default_backend()
    program = _program(model, platform)  # pyright: ignore[reportArgumentType]: it can be hashed
    return program(key, images)


@cache
def _program(model, platform):
    options = compiler.options(platform, runs_once=True)
    return jax.jit(partial(initialize, model), compiler_options=options)


def initialize(model: "NVAE", key: jax.Array, images: jax.Array | np.ndarray) -> VariableDict:
    """Fresh variables of `model`; jit it.

    Args:
      model: an `NVAE`.
      key: a PRNG key.
      images: (B, H, W, C) in [0, 1]. Values and batch size matter only if `model.needs_data_init`.

    Returns:
      {"params": ..., "batch_stats": ...}.
    """
    draw_key, latent_key = jax.random.split(key)
    shapes, modules = describe_variables(model, images.shape[1:])
    values = _first_values(draw_key, {**shapes["params"], **shapes["batch_stats"]}, modules)
    variables = {
        collection: traverse_util.unflatten_dict({p: values[p] for p in tree if p in values})
        for collection, tree in shapes.items()
    }
    if model.needs_data_init or shapes["params"].keys() - values.keys():
        # Parameters that their modules give no first values of come from initialisers in a pass.
        rngs = {"params": latent_key, "latent": latent_key}
        # The scans are kept as loops: unrolling them would only make compilation longer.
        _, changed = model.clone(unroll=1).apply(variables, images, mutable=["params"], rngs=rngs)
        variables = {**variables, **changed}
    return variables


def _first_values(key, shapes, modules) -> dict[tuple[str, ...], jax.Array]:
    """{path: array} for those variables {path: shape} that {path: module} have first values of."""
    modules = {path: m for path, m in modules.items() if hasattr(m, "initial_values")}
    mine, draws = defaultdict(dict), defaultdict(dict)
    for path, shape in shapes.items():
        mine[path[:-1]][path[-1]] = shape
    random = sorted((*p, name) for p, o in modules.items() for name in o.RANDOM if name in mine[p])
    sizes = [math.prod(shapes[path]) for path in random]
    parts = jnp.split(jax.random.uniform(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    for path, part in zip(random, parts, strict=True):
        draws[path[:-1]][path[-1]] = part.reshape(shapes[path])
    return {
        (*path, name): value
        for path, module in modules.items()
        for name, value in module.initial_values(mine[path], draws[path]).items()
    }
