"""Everything that training changes, as one pytree; and what of it inference uses."""

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
    """All that training changes. A checkpoint holds it, so that a resumed run is the uninterrupted
    one."""

    step: jax.Array  # () int32, updates done
    params: Any
    batch_stats: Any
    opt_state: Any
    spectral: dict[str, jax.Array]  # power-iteration vectors
    key: jax.Array  # raw PRNG key; a step uses fold_in(key, step)
    nonfinite_steps: jax.Array  # () int32, updates skipped in a row
    average: dict[str, Any] = struct.field(default_factory=dict)  # moving, of the variables, if on

    @property
    def trained(self) -> dict[str, Any]:
        """The variables that the updates change."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation and sampling give `model.apply`: the moving average where kept. A dict of
        its own, so that putting other statistics into it does not change the state."""
        return dict(self.average or self.trained)

    def is_good(self) -> bool:
        """Whether the last update was finite, and was not skipped."""
        return not int(self.nonfinite_steps)

    def before_skipped(self) -> "State":
        """The state before the updates skipped last, which changed only the counters."""
        if self.is_good():
            return self
        step = self.step - self.nonfinite_steps
        return self.replace(step=step, nonfinite_steps=jnp.zeros_like(self.nonfinite_steps))

    def stored(self) -> dict[str, Any]:
        """{field: value} as a checkpoint holds it: without what is switched off."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields if self.average else {k: v for k, v in fields.items() if k != "average"}


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """What inference uses of a checkpoint. Nothing that is done with it changes it.

    Attributes:
      step: updates done.
      collections: the model's variables, not to be changed; `variables` gives dictionaries to work
        with.
    """

    step: int
    collections: Any = dataclasses.field(repr=False)

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation and sampling give `model.apply`, in dictionaries of their own."""
        return jax.tree.map(lambda array: array, self.collections)

    def nonfinite(self) -> list[str]:
        """The paths of arrays with NaN or infinity, which no training step writes."""
        arrays = by_name(self.collections).items()
        return [name for name, array in arrays if not np.isfinite(np.asarray(array)).all()]

    @cached_property
    def fingerprint(self) -> str:
        """A short text that another checkpoint has only where its variables are the same."""
        digest = hashlib.sha256()
        for path, array in jax.tree_util.tree_leaves_with_path(self.collections):
            array = np.asarray(array)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).data.cast("B"))
        return digest.hexdigest()[:16]


def build(
    model: NVAE, optimizer: Optimizer, seed: int, images: jax.Array, averaged: bool = False
) -> State:
    """A fresh state; to be compiled, or under `jax.eval_shape` for its shapes.

    Args:
      model: an `NVAE`.
      optimizer: an optax transformation.
      seed: of parameters, spectral vectors and everything drawn in training.
      images: (B, H, W, C) in [0, 1]; their values matter only to cells that are initialised from
        data.
      averaged: whether to keep a moving average of the variables.
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
        # Copies: a donated state must not hold one array twice.
        average=jax.tree.map(jnp.copy, variables) if averaged else {},
    )


def initial_spectral_vectors(
    key: jax.Array, model: NVAE, params: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Random vectors for power iteration after its early rounds, so that the first step needs no
    more rounds than any other.

    Returns:
      one (matrices, out) array for each shape of kernels' matrices, under the shape's name.
    """
    kernels = jax.eval_shape(partial(effective_kernels, model), params)
    vectors = regularizers.init_spectral_vectors(key, kernels)
    return settle_spectral_vectors(model, params, vectors)


def settle_spectral_vectors(
    model: NVAE, params: Mapping[str, Any], vectors: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """`vectors` of any parameters after the early rounds of power iteration with these."""
    kernels = effective_kernels(model, params)
    return model.ops.spectral_penalty(kernels, vectors, regularizers.EARLY_ROUNDS)[2]
