"""Everything that training changes, as one pytree."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from nvae_jax import regularizers
from nvae_jax.models.initialize import initialize


@struct.dataclass
class State:
    """One checkpoint holds all of it, so that a resumed run is the uninterrupted one."""

    step: jax.Array  # () int32, updates done
    params: Any
    batch_stats: Any
    opt_state: Any
    spectral: dict[str, jax.Array]  # power-iteration vectors
    key: jax.Array  # raw PRNG key; a step uses fold_in(key, step)
    nonfinite_steps: jax.Array  # () int32, updates skipped in a row

    @property
    def variables(self):
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create(model, optimizer, seed, first_batch, shardings=None):
    """A fresh state, computed in one jitted call.

    Args:
      model: an `NVAE`.
      optimizer: an optax transformation.
      seed: of parameters, spectral vectors and everything drawn in training.
      first_batch: images (B, H, W, C) in [0, 1]; their values matter only to cells that are
        initialised from data.
      shardings: of the state, as a tree; None leaves them to JAX.
    """
    if not model.needs_data_init:
        first_batch = np.zeros((1, *first_batch.shape[1:]), np.float32)
    create_all = jax.jit(partial(build, model, optimizer), out_shardings=shardings)
    return create_all(seed, first_batch)


def build(model, optimizer, seed, images):
    """What `create` compiles; under `jax.eval_shape` it gives the state's shapes."""
    init_key, spectral_key, train_key = jax.random.split(jax.random.key(seed), 3)
    variables = initialize(model, init_key, images)
    vectors = regularizers.init_spectral_vectors(spectral_key, kernels_of(model, variables, images))
    return State(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        spectral=vectors,
        key=jax.random.key_data(train_key),
        nonfinite_steps=jnp.zeros((), jnp.int32),
    )


def kernels_of(model, variables, images):
    """Shapes of the kernels that the model convolves with, as the collection `kernels`."""
    run = partial(model.clone(unroll=1).apply, mutable=["kernels"])
    rngs = {"latent": jax.random.key(0)}
    return jax.eval_shape(lambda v, x: run(v, x, rngs=rngs), variables, images)[1]["kernels"]
