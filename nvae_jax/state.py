"""The training state as one pytree, and the part of it that inference needs."""

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from nvae_jax import regularizers
from nvae_jax.models.initialize import initialize
from nvae_jax.models.kernels import effective_kernels
from nvae_jax.models.nvae import NVAE
from nvae_jax.optim import Optimizer
from nvae_jax.trees import by_name


class State(struct.PyTreeNode):
    """Everything that training changes. A checkpoint contains all of it, so that a resumed run
    computes exactly what an uninterrupted run does."""

    step: jax.Array  # () int32, updates done
    params: Any
    batch_stats: Any
    opt_state: Any
    spectral: dict[str, jax.Array]  # power-iteration vectors
    key: jax.Array  # raw PRNG key; a step uses fold_in(key, step)
    nonfinite_steps: jax.Array  # () int32, number of consecutive skipped updates
    average: dict[str, Any] = struct.field(default_factory=dict)  # EMA of the variables, or {}

    @property
    def trained(self) -> dict[str, Any]:
        """The variables that updates change: parameters and running statistics."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for evaluation and sampling: the EMA if there is one.

        The dict is a new one, so that replacing its statistics does not change the state.
        """
        return dict(self.average or self.trained)

    def is_good(self) -> bool:
        """Whether the last update was finite and so was not skipped."""
        return not int(self.nonfinite_steps)

    def before_skipped(self) -> "State":
        """The state before the latest skipped updates, which changed only the counters."""
        if self.is_good():
            return self
        step = self.step - self.nonfinite_steps
        return self.replace(step=step, nonfinite_steps=jnp.zeros_like(self.nonfinite_steps))

    def stored(self) -> dict[str, Any]:
        """The fields that a checkpoint contains, as {field: value}; without a disabled EMA."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields if self.average else {k: v for k, v in fields.items() if k != "average"}


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """The part of a checkpoint that inference needs; immutable.

    Attributes:
      step: number of updates done.
      collections: the model's variables. Do not modify them: `variables` returns new dicts.
    """

    step: int
    collections: Any = dataclasses.field(repr=False)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for evaluation and sampling, in new dicts."""
        return jax.tree.map(lambda array: array, self.collections)

    def nonfinite(self) -> list[str]:
        """The paths of arrays that contain NaN or infinity, which training never saves."""
        arrays = by_name(self.collections).items()
        return [name for name, array in arrays if not np.isfinite(np.asarray(array)).all()]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the variables; two checkpoints have the same only if their variables are."""
        digest = hashlib.sha256()
        for path, array in jax.tree_util.tree_leaves_with_path(self.collections):
            array = np.asarray(array)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data.cast("B"))
        return digest.hexdigest()[:16]


def build(
    model: NVAE, optimizer: Optimizer, seed: int, images: jax.Array, averaged: bool = False
) -> State:
    """Creates the initial training state. Use it with `jax.jit`, or with `jax.eval_shape` for its
    shapes.

    Args:
      model: an `NVAE`.
      optimizer: an `optim.Optimizer`.
      seed: seed of parameters, spectral vectors and all draws in training.
      images: (B, H, W, C) in [0, 1]; their values matter only for cells that are initialised from
        data.
      averaged: whether to keep an EMA of the variables.
    """
    init_key, spectral_key, train_key = jax.random.split(jax.random.key(seed), 3)
    variables = initialize(model, init_key, images)
    return State(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        spectral=initial_spectral_vectors(spectral_key, model, variables["params"]),
        key=jax.random.key_data(train_key),
        nonfinite_steps=jnp.zeros((), jnp.int32),
        # Copies, because a donated state must not contain an array twice.
        average=jax.tree.map(jnp.copy, variables) if averaged else {},
    )


def initial_spectral_vectors(
    key: jax.Array, model: NVAE, params: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Initial vectors of power iteration: random vectors after `EARLY_ROUNDS` rounds, so that the
    first step needs no more rounds than the others.

    Returns:
      {name of a matrix shape: (matrices, out)}.
    """
    kernels = jax.eval_shape(partial(effective_kernels, model), params)
    vectors = regularizers.init_spectral_vectors(key, kernels)
    return settle_spectral_vectors(model, params, vectors)


def settle_spectral_vectors(
    model: NVAE, params: Mapping[str, Any], vectors: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Adapts power-iteration vectors to other parameters by `EARLY_ROUNDS` rounds."""
    kernels = effective_kernels(model, params)
    return model.ops.spectral_penalty(kernels, vectors, regularizers.EARLY_ROUNDS)[2]
