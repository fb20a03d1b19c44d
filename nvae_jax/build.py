"""Builds the parts of an experiment from a ConfigDict: model, likelihood, data, optimiser, mesh.

This is the only module that reads values from a ConfigDict. Each function first checks the whole
config with `schema`, and raises ValueError with one line that names the key.
"""

import dataclasses
from functools import cache, partial, wraps

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from nvae_jax import likelihoods, schema, sharding
from nvae_jax.cluster_detection import DistributedSettings
from nvae_jax.data import pipeline, sources
from nvae_jax.data.spec import DataSpec
from nvae_jax.experiment import Experiment
from nvae_jax.likelihoods import Likelihood
from nvae_jax.models import cells, remat
from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.models.nvae import NVAE
from nvae_jax.objective import ObjectiveSettings
from nvae_jax.ops import choice
from nvae_jax.optim import Optimizer, OptimizerSettings, adamax, learning_rate_schedule
from nvae_jax.settings import EvaluationSettings, LoopSettings, StartSettings
from nvae_jax.sharding import Devices

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PRECISIONS = {
    "default": jax.lax.Precision.DEFAULT,
    "high": jax.lax.Precision.HIGH,
    "highest": jax.lax.Precision.HIGHEST,
}
UNROLL_ALL = 10**6
# On CPU and GPU groups are unrolled by default, because loops copy the arrays that they stack: of
# ffhq256's 36 groups a GPU makes 13,475 kernels instead of 29,272. Models of more groups than these
# run them in loops there too, because the time to compile grows with them. TPUs always do.
MAX_UNROLLED_GROUPS = {"cpu": 32, "gpu": 40}


def _with_checked_config(function):
    """Decorates `function(config, ...)` so that it first checks the config with `schema.check`."""

    @wraps(function)
    def checked_function(config, *args, **kwargs):
        schema.check(config)
        return function(config, *args, **kwargs)

    return checked_function


@_with_checked_config
def build_model(config: ConfigDict, devices: Devices | None = None) -> NVAE:
    """Builds the `NVAE` module that a config describes.

    Args:
      config: a ConfigDict.
      devices: devices that the model will run on, which determine the kernels it uses; None stands
        for all devices, and () for kernels that run anywhere.

    Raises:
      ValueError: for an unknown key or an invalid value, in one line.
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
        unroll=model.unroll or _default_unroll(hierarchy, devices),
        remat=_one_of(remat.POLICIES, "model.remat", model.remat),
        dtype=_choose(DTYPES, "model.dtype", model.dtype),
        precision=_choose(PRECISIONS, "model.precision", model.precision),
        ops=choice.choose(
            _one_of(choice.NAMES, "model.implementation", model.implementation), devices
        ),
        **{key: model[key] for key in same.split()},
    )


def _default_unroll(hierarchy, devices):
    platform = devices[0].platform if len(devices) else jax.default_backend()
    few = sum(hierarchy.groups) <= MAX_UNROLLED_GROUPS.get(platform, 0)
    return UNROLL_ALL if few else 1


@_with_checked_config
def build_hierarchy(config: ConfigDict) -> Hierarchy:
    """Builds the config's latent `Hierarchy`: its scales, groups and resolutions."""
    if not (config.data.image_size and config.data.channels):
        raise ValueError(
            "data.image_size and data.channels of 0 stand for those of the data: call "
            "build.resolve(config) first"
        )
    keys = "num_scales num_groups latent_channels process_blocks adaptive_groups min_groups"
    return Hierarchy(
        image_size=config.data.image_size, **{key: config.model[key] for key in keys.split()}
    )


def build_likelihood(config: ConfigDict) -> Likelihood:
    """Builds the likelihood that a config describes.

    Args:
      config: a ConfigDict.

    Returns:
      a function from the decoder's logits (B, H, W, params) to a `likelihoods.ImageDistribution`,
      with the methods `log_prob(x) -> (B,)` in nats, `sample(key)` and `mean()`.
    """
    return _likelihood(
        config.model.likelihood,
        num_bits=config.data.num_bits,
        padding=config.data.padding,
        channels=config.data.channels,
    )


@cache  # equal likelihoods are the same object, so that they share compiled programs
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


@_with_checked_config
def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy of the config with the values that depend on the data: an image size or number
    of channels of 0, and the likelihood "auto"."""
    config = config.copy_and_resolve_references()
    spec = pipeline.describe(build_data(config))
    config.data.update(image_size=spec.image_size, channels=spec.channels)
    if config.model.likelihood == "auto":
        config.model.likelihood = likelihoods.default(spec.binarize)
    return config.lock()


@_with_checked_config
def build_data(config: ConfigDict) -> DataSpec:
    """Builds the `DataSpec` of the config's data set."""
    return DataSpec(**config.data.to_dict())


@_with_checked_config
def build_objective(config: ConfigDict) -> ObjectiveSettings:
    """Builds the `ObjectiveSettings` for the config's number of steps."""
    settings = config.objective.to_dict()
    num_steps = settings.pop("schedule_steps") or config.train.num_steps
    return ObjectiveSettings(num_steps=num_steps, **settings)


@_with_checked_config
def build_optimizer(config: ConfigDict) -> tuple[Optimizer, optax.Schedule]:
    """Builds (`optim.Optimizer`, learning rate schedule) for the config's number of steps."""
    settings = OptimizerSettings(num_steps=config.train.num_steps, **config.optimizer.to_dict())
    return _optimizer(settings)


@cache  # for the same reason as `_likelihood`
def _optimizer(settings):
    return adamax(settings), learning_rate_schedule(settings)


@_with_checked_config
def build(config: ConfigDict, devices: Devices | None = None) -> Experiment:
    """Builds and checks everything that a config describes.

    Args:
      config: a ConfigDict from `resolve`, or one in which no value depends on the data.
      devices: devices of the mesh; None uses all.

    Raises:
      ValueError: for an unknown key or an invalid value, in one line.
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
    """Checks a config as `build` does, as far as possible without its data and devices.

    It is for the machine that launches a run on other machines.

    Raises:
      ValueError: as `build`.
    """
    sharding.MeshSettings(**config.mesh.to_dict())
    sources.get_source(config.data.name)
    for part in (build_data, build_objective, build_optimizer, build_start, build_loop):
        part(config)
    build_evaluation(config)
    build_distributed(config)
    if config.data.image_size and config.data.channels:  # otherwise they depend on the data
        build_model(resolve(config), devices=())


@_with_checked_config
def build_for_inference(config: ConfigDict) -> Experiment:
    """Builds an experiment for inference on this machine's devices, whatever it was trained on.

    The config's mesh, which is for training, is ignored, and so are kernels that do not run here.
    """
    config = config.copy_and_resolve_references()
    config.mesh.update(dataclasses.asdict(sharding.MeshSettings()))
    if not choice.runs(config.model.implementation, jax.devices()):
        config.model.implementation = choice.AUTO
    return build(config)


@_with_checked_config
def build_distributed(config: ConfigDict) -> DistributedSettings:
    """Builds `DistributedSettings` from the section `distributed`."""
    return DistributedSettings(**config.distributed.to_dict())


@_with_checked_config
def build_loop(config: ConfigDict) -> LoopSettings:
    """Builds `LoopSettings` from the sections `train`, `log` and `checkpoint`."""
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


@_with_checked_config
def build_start(config: ConfigDict) -> StartSettings:
    """Builds `StartSettings` from the section `train`."""
    train = config.train
    if train.init_optimizer and not train.init_from:
        raise ValueError("train.init_optimizer needs the other run: name it with train.init_from")
    return StartSettings(
        init_from=train.init_from,
        init_optimizer=train.init_optimizer,
        init_differences=_one_of(
            StartSettings.CHOICES, "train.init_differences", train.init_differences
        ),
    )


@_with_checked_config
def build_evaluation(config: ConfigDict) -> EvaluationSettings:
    """Builds `EvaluationSettings` from the section `eval`."""
    return EvaluationSettings(**config.eval.to_dict())
