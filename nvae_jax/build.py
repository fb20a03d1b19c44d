"""The one join: turns a ConfigDict into the model, its likelihood, its data and its optimiser.

Nobody else reads a ConfigDict. Every function raises ValueError with one line that names the key:
each checks the whole config by `schema` first.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nvae_jax import likelihoods, schema, sharding, state, steps
from nvae_jax.data import pipeline, sources
from nvae_jax.data.spec import DataSpec
from nvae_jax.distributed import DistributedSettings
from nvae_jax.likelihoods import Likelihood
from nvae_jax.models import cells, remat
from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.models.nvae import NVAE
from nvae_jax.models.parameter_modules import describe_variables
from nvae_jax.objective import ObjectiveSettings
from nvae_jax.ops import choice, compiler
from nvae_jax.ops.anywhere import MultiPlatform
from nvae_jax.ops.portable import Portable
from nvae_jax.optim import Optimizer, OptimizerSettings, adamax, learning_rate_schedule
from nvae_jax.programs import shared
from nvae_jax.settings import EvaluationSettings, LoopSettings, StartSettings
from nvae_jax.sharding import Devices

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PRECISIONS = {
    "default": jax.lax.Precision.DEFAULT,
    "high": jax.lax.Precision.HIGH,
    "highest": jax.lax.Precision.HIGHEST,
}
UNROLL_ALL = 10**6
# On CPU and GPU, where loops copy what they stack. Models of more groups stay loops there too:
# unrolled they compile for minutes.
MOST_UNROLLED_GROUPS = 32


def _of_checked(function):
    """`function(config, ...)` of configs that `schema.check` lets pass."""

    @wraps(function)
    def checking(config, *args, **kwargs):
        schema.check(config)
        return function(config, *args, **kwargs)

    return checking


@_of_checked
def build_model(config: ConfigDict, devices: Devices | None = None) -> NVAE:
    """The `NVAE` module that a config describes.

    Args:
      config: a ConfigDict.
      devices: that it runs on, which decide what it is computed with; None takes all that there
        are. () gives what runs anywhere.

    Raises:
      ValueError: a key that nothing reads, or a value that it cannot have, in one line.
    """
    devices = jax.devices() if devices is None else devices
    model = config.model
    for key in ("encoder_cell", "decoder_cell"):
        _one_of(cells.BODIES, f"model.{key}", model[key])
    _one_of(likelihoods.REGISTRY, "model.likelihood", model.likelihood)
    likelihoods.check_bits(model.likelihood, config.data.num_bits)
    same = (
        "encoder_width decoder_width preprocess_cells postprocess_cells encoder_cells_per_group "
        "decoder_cells_per_group encoder_cell decoder_cell squeeze_excitation residual_posterior "
        "num_flows norm_groups"
    )
    hierarchy = build_hierarchy(config)
    return NVAE(
        hierarchy=hierarchy,
        output_channels=likelihoods.num_params(
            model.likelihood, config.data.channels, model.num_mixtures
        ),
        unroll=model.unroll or _default_unroll(hierarchy),
        remat=_one_of(remat.POLICIES, "model.remat", model.remat),
        dtype=_choose(DTYPES, "model.dtype", model.dtype),
        precision=_choose(PRECISIONS, "model.precision", model.precision),
        ops=choice.choose(
            _one_of(choice.NAMES, "model.implementation", model.implementation), devices
        ),
        **{key: model[key] for key in same.split()},
    )


def _default_unroll(hierarchy):
    few = sum(hierarchy.groups) <= MOST_UNROLLED_GROUPS
    return UNROLL_ALL if few and jax.default_backend() in ("cpu", "gpu") else 1


@_of_checked
def build_hierarchy(config: ConfigDict) -> Hierarchy:
    """The arithmetic of the config's latent hierarchy."""
    if not (config.data.image_size and config.data.channels):
        raise ValueError(
            "data.image_size and data.channels of 0 are those of the data: take "
            "build.resolve(config)"
        )
    keys = "num_scales num_groups latent_channels process_blocks adaptive_groups min_groups"
    return Hierarchy(
        image_size=config.data.image_size, **{key: config.model[key] for key in keys.split()}
    )


def build_likelihood(config: ConfigDict) -> Likelihood:
    """The likelihood that a config describes: a function of the decoder's logits
    (B, H, W, params) to an `likelihoods.ImageDistribution`, with `log_prob(x) -> (B,)` in nats,
    `sample(key)` and `mean()`.

    Args:
      config: a ConfigDict.
    """
    return _likelihood(
        config.model.likelihood,
        num_bits=config.data.num_bits,
        padding=config.data.padding,
        channels=config.data.channels,
    )


@cache  # equal ones are one object: what is compiled with one is found again with the next
def _likelihood(name, **settings):
    return partial(likelihoods.make, name, **settings)


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of the images that the model sees."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


def _choose(table, key, value):
    return table[_one_of(table, key, value)]


def _one_of(names, key, value):
    if value not in names:
        raise ValueError(f"{key} is {value!r}; it must be one of: {', '.join(names)}")
    return value


@_of_checked
def resolve(config: ConfigDict) -> ConfigDict:
    """A copy of the config with what follows from the data filled in: image size and channels that
    are 0, and the likelihood "auto"."""
    config = config.copy_and_resolve_references()
    spec = pipeline.describe(build_data(config))
    config.data.update(image_size=spec.image_size, channels=spec.channels)
    if config.model.likelihood == "auto":
        config.model.likelihood = likelihoods.default(spec.binarize)
    return config.lock()


@_of_checked
def build_data(config: ConfigDict) -> DataSpec:
    """The `DataSpec` of the config's data set."""
    return DataSpec(**config.data.to_dict())


@_of_checked
def build_objective(config: ConfigDict) -> ObjectiveSettings:
    """`ObjectiveSettings` over the config's steps."""
    settings = config.objective.to_dict()
    num_steps = settings.pop("schedule_steps") or config.train.num_steps
    return ObjectiveSettings(num_steps=num_steps, **settings)


@_of_checked
def build_optimizer(config: ConfigDict) -> tuple[Optimizer, optax.Schedule]:
    """(`optim.Optimizer`, learning rate schedule) over the config's steps."""
    settings = OptimizerSettings(num_steps=config.train.num_steps, **config.optimizer.to_dict())
    return _optimizer(settings)


@cache  # as `_likelihood`
def _optimizer(settings):
    return adamax(settings), learning_rate_schedule(settings)


@shared
def _state_builder(model, optimizer, averaged):  # one object, so that jax traces it once
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


@dataclass(frozen=True)
class Experiment:
    """Everything that a config describes, built and checked."""

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

    def portable(self) -> "Experiment":
        """The same in plain JAX: to count the operations of, and to compile for devices that are
        not there."""
        return dataclasses.replace(self, model=self.model.clone(ops=Portable()))

    @property
    def model_for_any_platform(self) -> NVAE:
        """The model for programs that are lowered for several platforms."""
        return self.model.clone(ops=MultiPlatform())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the model sees."""
        return self.data.image_shape

    def create_state(self, first_batch: np.ndarray | None = None) -> state.State:
        """A fresh training state on the mesh. `first_batch`, images (B, H, W, C) in [0, 1], is
        wanted only by models of cells that are initialised from data."""
        if self.model.needs_data_init and first_batch is None:
            raise ValueError("cells of kind residual_elu are initialised from a batch of images")
        images = np.asarray(first_batch) if self.model.needs_data_init else self._one_image
        return _state_creator(*self._state_key)(self.seed, images)

    def settle_spectral_vectors(self, fresh: state.State) -> state.State:
        """A state whose parameters came from elsewhere, with power-iteration vectors that suit
        them."""
        settle = jax.jit(
            partial(state.settle_spectral_vectors, self.model),
            out_shardings=jax.tree.map(lambda a: a.sharding, self.abstract_state().spectral),
            compiler_options=compiler.options(self._platform, runs_once=True),
        )
        return fresh.replace(spectral=settle(fresh.params, fresh.spectral))

    def abstract_state(self) -> state.State:
        """The shapes of a training state, and where on the mesh its arrays are."""
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
        """The shapes of the model's variables, copied to every device."""
        shapes, _ = describe_variables(self.model, self.image_shape)
        everywhere = sharding.replicated(self.mesh)

        def abstract(shape):
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=everywhere)

        return {
            collection: unflatten_dict({path: abstract(shape) for path, shape in tree.items()})
            for collection, tree in shapes.items()
        }

    def abstract_images(self) -> jax.ShapeDtypeStruct:
        """The shape of a global training batch, and where on the mesh it is."""
        shape = (self.loop.batch_size, *self.image_shape)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.over_batch(self.mesh))

    def train_step(self) -> jax.stages.Wrapped:
        """The jitted update, (state, images) -> (state, metrics); the state given is donated."""
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


@_of_checked
def build(config: ConfigDict, devices: Devices | None = None) -> Experiment:
    """Builds and checks everything that a config describes, before anything is written.

    Args:
      config: a resolved ConfigDict.
      devices: of the mesh; None takes all that there are.
    """
    optimizer, learning_rate = build_optimizer(config)
    mesh = sharding.make_mesh(sharding.MeshSettings(**config.mesh.to_dict()), devices)
    return Experiment(
        model=build_model(config, tuple(mesh.devices.flat)),
        likelihood=build_likelihood(config),
        data=build_data(config),
        objective=build_objective(config),
        optimizer=optimizer,
        learning_rate=learning_rate,
        seed=config.seed,
        start=build_start(config),
        loop=build_loop(config),
        evaluation=build_evaluation(config),
        mesh=mesh,
    )


def check(config: ConfigDict) -> None:
    """Refuses what `build` would, as far as that can be told without its data and devices: on the
    machine that starts a run elsewhere."""
    sharding.MeshSettings(**config.mesh.to_dict())
    sources.get_source(config.data.name)
    for part in (build_data, build_objective, build_optimizer, build_start, build_loop):
        part(config)
    build_evaluation(config)
    build_distributed(config)
    if config.data.image_size and config.data.channels:  # otherwise, the data's
        build_model(resolve(config), devices=())


@_of_checked
def build_for_inference(config: ConfigDict) -> Experiment:
    """`build` on the devices that there are, whatever the model was trained on: the mesh is
    training's, and kernels that were asked for are used where they run."""
    config = config.copy_and_resolve_references()
    config.mesh.update(dataclasses.asdict(sharding.MeshSettings()))
    if not choice.runs(config.model.implementation, jax.devices()):
        config.model.implementation = choice.AUTO
    return build(config)


@_of_checked
def build_distributed(config: ConfigDict) -> DistributedSettings:
    """`DistributedSettings` from the section `distributed`."""
    return DistributedSettings(**config.distributed.to_dict())


@_of_checked
def build_loop(config: ConfigDict) -> LoopSettings:
    """`LoopSettings` from the sections `train`, `log` and `checkpoint`."""
    return LoopSettings(
        num_steps=config.train.num_steps,
        batch_size=config.train.batch_size,
        accumulation_steps=config.train.accumulation_steps,
        ema_decay=config.train.ema_decay,
        max_nonfinite_steps=config.train.max_nonfinite_steps,
        log_every_steps=config.log.every_steps,
        images_every_steps=config.log.images_every_steps,
        num_images=config.log.num_images,
        checkpoint_every_steps=config.checkpoint.every_steps,
        keep_checkpoints=config.checkpoint.keep,
        keep_best_checkpoints=config.checkpoint.keep_best,
    )


@_of_checked
def build_start(config: ConfigDict) -> StartSettings:
    """`StartSettings` from the section `train`."""
    train = config.train
    if train.init_optimizer and not train.init_from:
        raise ValueError("train.init_optimizer is of another run's: name it with train.init_from")
    return StartSettings(
        init_from=train.init_from,
        init_optimizer=train.init_optimizer,
        init_differences=_one_of(
            StartSettings.CHOICES, "train.init_differences", train.init_differences
        ),
    )


@_of_checked
def build_evaluation(config: ConfigDict) -> EvaluationSettings:
    """`EvaluationSettings` from the section `eval`."""
    return EvaluationSettings(**config.eval.to_dict())
