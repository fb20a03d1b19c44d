"""An experiment: everything that a config describes, built and checked, with its compiled steps."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from nvae_jax import sharding, state, steps
from nvae_jax.data.spec import DataSpec
from nvae_jax.models.nvae import NVAE
from nvae_jax.models.parameter_modules import describe_variables
from nvae_jax.objective import ObjectiveSettings
from nvae_jax.ops import compiler
from nvae_jax.ops.anywhere import MultiPlatform
from nvae_jax.ops.portable import Portable
from nvae_jax.programs import shared
from nvae_jax.settings import EvaluationSettings, LoopSettings, StartSettings


@dataclass(frozen=True)
class Experiment:
    """Everything that a config describes, built and checked; made by `build.build`.

    Attributes:
      model: the `NVAE` module.
      likelihood: a function from logits to an `likelihoods.ImageDistribution`.
      data: the data set's `DataSpec`.
      objective: settings of the training objective.
      optimizer: an `optim.Optimizer`.
      learning_rate: the schedule, from a step to its learning rate.
      seed: seed of parameters and of all draws in training.
      start: the initial values of the run.
      loop: settings of the training loop.
      evaluation: settings of evaluation.
      mesh: the mesh of devices to train on.

    Raises:
      ValueError: if `model.norm_groups` does not divide a micro-batch.
    """

    model: NVAE
    likelihood: Callable[..., Any]
    data: DataSpec
    objective: ObjectiveSettings
    optimizer: Any
    learning_rate: Callable[..., Any]
    seed: int
    start: StartSettings
    loop: LoopSettings
    evaluation: EvaluationSettings
    mesh: Mesh

    def __post_init__(self):
        images = self.loop.batch_size // self.loop.accumulation_steps
        if images % self.model.norm_groups:
            raise ValueError(
                f"model.norm_groups={self.model.norm_groups} does not divide the {images} images "
                "of train.batch_size / train.accumulation_steps"
            )

    def describe(self) -> str:
        """Describes the model in one line, for metadata."""
        hierarchy, shape = self.model.hierarchy, "x".join(map(str, self.image_shape))
        return (
            f"NVAE of {self.data.name} {shape}: {sum(hierarchy.groups)} groups on "
            f"{hierarchy.num_scales} scale(s), widths {self.model.encoder_width} and "
            f"{self.model.decoder_width}"
        )

    def metadata(self, snapshot: state.Snapshot) -> dict[str, Any]:
        """The metadata of all files made with the variables of a checkpoint of this experiment."""
        return {
            "model": self.describe(),
            "step": snapshot.step,
            "weights": snapshot.fingerprint,
        }

    def portable(self) -> "Experiment":
        """The same experiment in plain JAX, for counting operations and for compiling for devices
        that this machine does not have."""
        return dataclasses.replace(self, model=self.model.clone(ops=Portable()))

    @property
    def model_for_any_platform(self) -> NVAE:
        """The model for programs that are lowered for several platforms."""
        return self.model.clone(ops=MultiPlatform())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the model sees, with padding."""
        return self.data.image_shape

    def create_state(self, first_batch: np.ndarray | None = None) -> state.State:
        """Creates the initial training state on the mesh.

        Args:
          first_batch: images (B, H, W, C) in [0, 1]; only needed by models with cells that are
            initialised from data.

        Raises:
          ValueError: if the model needs a first batch and there is none.
        """
        if self.model.needs_data_init and first_batch is None:
            raise ValueError("cells of kind residual_elu are initialised from a batch of images")
        images = np.asarray(first_batch) if self.model.needs_data_init else self._one_image
        return _state_creator(*self._state_key)(self.seed, images)

    def settle_spectral_vectors(self, fresh: state.State) -> state.State:
        """Adapts a state's power-iteration vectors to its parameters, if these were replaced."""
        settle = jax.jit(
            partial(state.settle_spectral_vectors, self.model),
            out_shardings=jax.tree.map(lambda a: a.sharding, self.abstract_state().spectral),
            compiler_options=compiler.options(self._platform, runs_once=True),
        )
        return fresh.replace(spectral=settle(fresh.params, fresh.spectral))

    def abstract_state(self) -> state.State:
        """The shapes of the training state's arrays, with their shardings."""
        return _abstract_state(*self._state_key)

    @property
    def _state_key(self):
        builder = _state_builder(self.model, self.optimizer, self.loop.ema_decay > 0)
        return builder, self.image_shape, self.mesh

    @property
    def _platform(self):
        return self.mesh.devices.flat[0].platform

    @property
    def _one_image(self):
        return np.zeros((1, *self.image_shape), np.float32)

    def abstract_variables(self) -> dict[str, Any]:
        """The shapes of the model's variables, replicated on every device."""
        shapes, _ = describe_variables(self.model, self.image_shape)
        everywhere = sharding.replicated(self.mesh)

        def abstract(shape):
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere)

        return {
            collection: unflatten_dict({path: abstract(shape) for path, shape in tree.items()})
            for collection, tree in shapes.items()
        }

    def abstract_images(self) -> jax.ShapeDtypeStruct:
        """The shape of a global training batch, with its sharding."""
        shape = (self.loop.batch_size, *self.image_shape)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.over_batch(self.mesh))

    def train_step(self) -> jax.stages.Wrapped:
        """The jitted update (state, images (B, H, W, C) in [0, 1]) -> (state, metrics), whose first
        argument is donated; see `steps.make_train_step`."""
        return _train_step(
            *self._state_key,
            self.model,
            self.likelihood,
            self.objective,
            self.optimizer,
            self.learning_rate,
            self.loop.accumulation_steps,
            self.loop.ema_decay,
        )


@shared
def _state_builder(model, optimizer, averaged):  # shared, so that jax traces it only once
    return partial(state.build, model, optimizer, averaged=averaged)


@shared
def _abstract_state(builder, image_shape, mesh):  # tracing takes seconds at published size
    shapes = jax.eval_shape(builder, 0, np.zeros((1, *image_shape), np.float32))
    return sharding.with_shardings(shapes, sharding.state_shardings(mesh, shapes))


@shared
def _state_creator(builder, image_shape, mesh):
    return jax.jit(
        builder,
        out_shardings=_shardings(builder, image_shape, mesh),
        compiler_options=compiler.options(mesh.devices.flat[0].platform, runs_once=True),
    )


def _shardings(builder, image_shape, mesh):
    return jax.tree.map(lambda a: a.sharding, _abstract_state(builder, image_shape, mesh))


@shared
def _train_step(
    builder, image_shape, mesh, model, likelihood, objective, optimizer, rate, accumulation, decay
):
    shardings = _shardings(builder, image_shape, mesh)
    return jax.jit(
        steps.make_train_step(
            model,
            likelihood,
            objective,
            optimizer,
            rate,
            accumulation_steps=accumulation,
            ema_decay=decay,
            mesh=mesh,
        ),
        in_shardings=(shardings, sharding.over_batch(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
        donate_argnums=0,
        compiler_options=model.ops.compiler_options(mesh.devices.flat[0].platform),
    )
