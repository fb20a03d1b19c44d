"""Recalibrates batch norm: computes its statistics for sampling from prior samples instead of
training batches (paper, section 4)."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.typing import VariableDict
from numpy.typing import ArrayLike

from nvae_jax import files, paths, processes, progress, reporting, sharding
from nvae_jax.experiment import Experiment
from nvae_jax.interrupt import interruptible
from nvae_jax.models.nvae import NVAE
from nvae_jax.noise import (
    describe_temperature,
    group_temperatures,
    image_keys,
    latent_noise,
)
from nvae_jax.ops import compiler
from nvae_jax.programs import shared
from nvae_jax.state import Snapshot

METHODS = ("pooled", "published")
PUBLISHED_MOMENTUM = 0.05
PROGRESS_BAR = partial(progress.bar, "recalibrating", unit="pass")
# Statistics are clipped to this, so that the difference of two of them does not overflow float32.
LARGEST = 1e17


def recalibrate(
    model: NVAE,
    variables: VariableDict,
    key: jax.Array,
    *,
    temperature: ArrayLike = 1.0,
    passes: int = 500,
    batch_size: int = 16,
    method: str = "pooled",
    progress: Callable[[Iterable], Iterable] = iter,
) -> Mapping[str, Any]:
    """Computes batch-norm statistics of prior samples, to replace the running statistics of
    training.

    Each pass draws samples with the batch's own statistics. The method `pooled` computes the exact
    statistics of all passes together: the average of the means, and the average of the variances
    plus the variance of the means between passes. `published` is the published recipe: a moving
    average with momentum 0.05 that starts from the running statistics of training. Only the
    top-down network and the postprocessing are affected. The passes run in float32, each on all
    devices of all hosts, which call this function together.

    Args:
      model: an `NVAE`.
      variables: its variables.
      key: a PRNG key.
      temperature: temperature of the prior at which to sample later: a number, or one per scale.
      passes: number of passes.
      batch_size: number of images per pass.
      method: one of `METHODS`.
      progress: wraps the iterable of passes, for a progress bar.

    Returns:
      new `batch_stats`, float32; finite if the weights are.

    Raises:
      ValueError: if there is less than one pass, fewer than two images per pass, or the method is
        unknown.
    """
    if passes < 1 or batch_size < 2:
        raise ValueError(
            f"recalibration needs at least 1 pass of 2 images, not {passes} of {batch_size}"
        )
    if method not in METHODS:
        raise ValueError(f"unknown recalibration {method!r}; known: {', '.join(METHODS)}")
    momentum = 1.0 if method == "pooled" else PUBLISHED_MOMENTUM
    # With momentum 1 the running statistics become those of the batch.
    model = model.clone(bn_momentum=momentum, norm_groups=1, dtype=jnp.float32)
    temperatures = group_temperatures(model.hierarchy, temperature)
    variables = sharding.replicate(variables)
    batches = (
        (i, sharding.shard_batch(np.arange(i * batch_size, (i + 1) * batch_size)))
        for i in interruptible(progress(range(passes)))
    )
    run, one_pass = _pooled if method == "pooled" else _moving_average, _program(model)
    return run(variables, lambda v, indices: one_pass(v, key, indices, temperatures), batches)


@shared  # compiled once for all temperatures of a model
def _program(model):
    options = compiler.options(jax.default_backend())
    return jax.jit(partial(_pass, model), compiler_options=options)


def _pass(model, variables, key, indices, temperatures):
    _, updated = model.apply(
        variables,
        noise=latent_noise(model, image_keys(key, indices)),
        temperature=temperatures,
        train=True,
        method="sample_logits",
        mutable=["batch_stats"],
    )
    statistics = jax.tree.map(_clip, updated["batch_stats"])
    everywhere = sharding.replicated(sharding.make_mesh(sharding.MeshSettings()))
    return jax.lax.with_sharding_constraint(statistics, everywhere)


def _clip(statistic):
    return jnp.clip(statistic.astype(jnp.float32), -LARGEST, LARGEST)


def _moving_average(variables, one_pass, batches):
    for _, indices in batches:
        variables = {**variables, "batch_stats": one_pass(variables, indices)}
    return variables["batch_stats"]


def _pooled(variables, one_pass, batches) -> Any:
    pooled, squares, count = None, None, 0
    for count, indices in batches:
        batch = one_pass(variables, indices)
        pooled, squares = (batch, None) if count == 0 else _pool(pooled, squares, batch, count + 1)
    return pooled if squares is None else _add_variance_of_means(pooled, squares, count + 1)


@jax.jit
def _pool(mean, squares, batch, count):
    """Welford's update of the means and of the sums of squared deviations from them."""
    squares = jax.tree.map(jnp.zeros_like, mean) if squares is None else squares
    deviation = jax.tree.map(jnp.subtract, batch, mean)
    mean = jax.tree.map(lambda m, d: m + d / count, mean, deviation)
    squares = jax.tree.map(lambda s, d, b, m: s + d * (b - m), squares, deviation, batch, mean)
    return mean, squares


@jax.jit
def _add_variance_of_means(mean, squares, count):
    """Adds the variance of the batch means to the mean of the batch variances."""

    def pooled(path, value):
        if path[-1].key != "var":
            return value
        deviations = squares
        for key in path[:-1]:
            deviations = deviations[key.key]
        return value + deviations["mean"] / count

    return jax.tree_util.tree_map_with_path(pooled, mean)


def recalibrated_statistics(
    workdir: str | Path,
    experiment: Experiment,
    state: Snapshot,
    *,
    temperature: ArrayLike,
    passes: int | None = None,
    method: str = "pooled",
    progress: Callable[[Iterable], Iterable] = PROGRESS_BAR,
) -> Mapping[str, Any]:
    """Recalibrates a run and caches the result for each temperature, number of passes and model.

    The result is saved in `workdir/recalibration/`. If it cannot be saved or read, it is computed
    every time.

    Args:
      workdir: the run directory.
      experiment: an `Experiment`.
      state: a `state.Snapshot`, from `loading.load_run`.
      temperature: a number, or one per scale.
      passes: number of passes; None uses the config's.
      method: one of `METHODS`.
      progress: wraps the iterable of passes, for a progress bar. If it raises an exception, nothing
        is saved.

    Returns:
      `batch_stats`.
    """
    settings = experiment.evaluation
    passes = settings.recalibration_passes if passes is None else passes
    size = settings.recalibration_batch_size
    name = (
        f"step_{state.step:08d}_{state.fingerprint}"
        f"_temperature_{describe_temperature(temperature)}_{passes}x{size}_{method}.npz"
    )
    path = paths.parse(workdir) / "recalibration" / name
    cached = _load(path, state.variables["batch_stats"])
    cached_everywhere = all(processes.all_gather(cached is not None))
    if cached_everywhere and cached is not None:
        return cached
    reporting.log(f"recalibrating batch norm: {passes} passes of {size} images")
    statistics = recalibrate(
        experiment.model,
        state.variables,
        jax.random.key(experiment.seed),
        temperature=temperature,
        passes=passes,
        batch_size=size,
        method=method,
        progress=progress,
    )
    processes.on_primary(lambda: _save(path, statistics))
    return statistics


def _load(path, like):
    """Loads statistics from a file; returns None if it does not contain those of this model."""
    if not path.is_file():
        return None
    try:
        with files.open_regular(path) as file, np.load(file) as loaded:
            arrays = dict(loaded)
    except Exception:  # reading a damaged file can raise anything
        return None
    wanted: dict[str, Any] = traverse_util.flatten_dict(like, sep="/")
    if {n: (a.shape, a.dtype) for n, a in arrays.items()} != {
        n: (a.shape, np.float32) for n, a in wanted.items()
    }:
        return None
    if not all(np.isfinite(a).all() for a in arrays.values()):
        return None
    return traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, arrays), sep="/")


def _save(path, statistics):
    arrays = jax.device_get(traverse_util.flatten_dict(statistics, sep="/"))
    try:
        with files.atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        print(f"the statistics are not saved: {error}")
