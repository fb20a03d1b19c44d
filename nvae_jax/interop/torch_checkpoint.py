"""Converts arrays of the published PyTorch code to this project's variables, and back.

Conversion in both directions uses the list of arrays in `published_names.leaves`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.typing import VariableDict
from ml_collections import ConfigDict

from nvae_jax.build import build_hierarchy, build_model, image_shape
from nvae_jax.interop.arguments import convert_args
from nvae_jax.interop.published_names import leaves

IGNORED_SUFFIXES = ("num_batches_tracked", "weight_normalized")
LAYOUTS = {  # ours <- published, by kind of array
    "kernel": lambda a: a.transpose(2, 3, 1, 0),
    "dense": lambda a: a.T,
    "vector": lambda a: a.reshape(-1),
    "log_scale": lambda a: a.reshape(-1),
    "feature": lambda a: a.transpose(1, 2, 0),
}
EXPORT_LAYOUTS = {  # published <- ours
    "kernel": lambda a: a.transpose(3, 2, 0, 1),
    "dense": lambda a: a.T,
    "vector": lambda a: a,
    "log_scale": lambda a: a.reshape(-1, 1, 1, 1),
    "feature": lambda a: a.transpose(2, 0, 1),
}


def convert_state(
    state: Mapping[str, np.ndarray], args: Mapping[str, Any]
) -> tuple[ConfigDict, VariableDict]:
    """Converts arrays under published names to a config and this project's variables.

    Args:
      state: a published state dict, {name: NumPy array}.
      args: the published command-line arguments with which the model was trained.

    Returns:
      (config, {"params": ..., "batch_stats": ...}).

    Raises:
      ValueError: if an argument is missing or unknown, or names or shapes do not fit the model that
        the arguments describe; the message says which.
    """
    config = convert_args(args)
    _check_shapes(config, state)
    variables, used = convert_tree(config, state)
    extra = [n for n in state if n not in used and not n.endswith(IGNORED_SUFFIXES)]
    if extra:
        raise ValueError(_explain_mismatch(extra, "not expected"))
    return config, variables


def convert_tree(
    config: ConfigDict,
    arrays: Mapping[str, np.ndarray],
    collections: Sequence[str] = ("params", "batch_stats"),
) -> tuple[VariableDict, set[str]]:
    """Converts arrays under published names (parameters, gradients, ...) to this project's trees.

    Args:
      config: config of the model.
      arrays: {published name: array}.
      collections: collections to convert.

    Returns:
      ({collection: tree}, the set of names that were used).

    Raises:
      ValueError: if an array is missing, or arrays to be stacked differ in shape.
    """
    found, used, missing = {}, set(), []
    for leaf in leaves(config, arrays):
        if leaf.collection not in collections:
            continue
        name = leaf.name_in(arrays)
        if name is None:
            missing.append(leaf.names[0])
            continue
        used.update(leaf.names)
        array = LAYOUTS[leaf.layout](np.asarray(arrays[name]))
        found.setdefault((leaf.collection, leaf.path), {})[leaf.index] = array
    if missing:
        raise ValueError(_explain_mismatch(missing, "missing"))
    return _assemble(found, collections), used


def _check_shapes(config, state):
    """Raises ValueError if an array has another shape than in the config's model."""
    expected, wrong = shapes(config), []
    for leaf in leaves(config, state):
        name = leaf.name_in(state)
        if name is None:
            continue
        ours = np.broadcast_to(np.float32(0), _own_shape(leaf, expected))
        wanted, given = EXPORT_LAYOUTS[leaf.layout](ours).shape, np.shape(state[name])
        one_dimensional = len(ours.shape) == 1
        if np.prod(given) != np.prod(wanted) if one_dimensional else given != wanted:
            wrong.append(f"{name} {given} instead of {wanted}")
    if wrong:
        raise ValueError(_explain_mismatch(wrong, "of another shape"))


def shapes(config: ConfigDict) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shapes of all variables of the config's model: {(collection, *path): shape}."""
    images = jnp.zeros((1, *image_shape(config)))
    init = build_model(config, devices=()).clone(unroll=1).init
    variables = jax.eval_shape(lambda: init(jax.random.key(0), images))
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(variables)
    return {path: leaf.shape for path, leaf in flat.items()}


def _own_shape(leaf, expected):
    path = (leaf.collection, *leaf.path)
    if path not in expected:
        raise ValueError(f"the model that the arguments describe has no {'/'.join(path)}")
    return expected[path] if leaf.index is None else expected[path][1:]


def export_state(config: ConfigDict, variables: VariableDict) -> dict[str, np.ndarray]:
    """Converts variables to arrays under published names, the reverse of `convert_state`.

    Args:
      config: config of the model.
      variables: {"params": ..., "batch_stats": ...}.

    Returns:
      {name: float32 array} in the published layouts, without the counters of batch norms.

    Raises:
      ValueError: if the model has a single group, because the published name of one of its
        convolutions is not known.
    """
    if build_hierarchy(config).is_single:
        raise ValueError("a model of one group cannot be exported: its published names are unknown")
    flat, arrays = traverse_util.flatten_dict(dict(variables)), {}
    for leaf in leaves(config, {}):
        array = np.asarray(flat[leaf.collection, *leaf.path], np.float32)
        array = array if leaf.index is None else array[leaf.index]
        array = np.ascontiguousarray(EXPORT_LAYOUTS[leaf.layout](array))
        arrays.update({name: array for name in leaf.names})
    return arrays


def _explain_mismatch(names, what):
    return (
        "the state does not fit the model that its arguments describe: "
        f"{len(names)} array(s) {what}, first {', '.join(sorted(names)[:3])}"
    )


def _assemble(found, collections):
    variables = {collection: {} for collection in collections}
    for (collection, path), arrays in found.items():
        node = variables[collection]
        for key in path[:-1]:
            node = node.setdefault(key, {})
        stacked = None not in arrays
        try:
            value = np.stack([arrays[i] for i in sorted(arrays)]) if stacked else arrays[None]
        except ValueError as error:
            raise ValueError(f"arrays of different shapes for the groups of {path}") from error
        node[path[-1]] = value
    return variables
