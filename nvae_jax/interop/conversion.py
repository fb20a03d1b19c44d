"""Converts a published checkpoint to a run directory, and back.

The run directory also stores the published arguments in `published.json`, because converting back
needs arguments that have no key in this project's config.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.typing import VariableDict
from ml_collections import ConfigDict

from nvae_jax import build, files, optim, paths, run_directory
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.data import pipeline, sources
from nvae_jax.data.spec import DataError
from nvae_jax.experiment import Experiment
from nvae_jax.interop import torch_checkpoint, torch_file
from nvae_jax.interop.arguments import export_args, export_operations
from nvae_jax.loading import load_snapshot
from nvae_jax.ops import compiler
from nvae_jax.programs import shared
from nvae_jax.state import State, initial_spectral_vectors

PUBLISHED = "published.json"


def convert_file(
    torch_path: str | Path, workdir: str | Path, *, num_devices: int = 1, data_dir: str = ""
) -> int:
    """Makes a run directory of a published checkpoint.

    The run can be evaluated and sampled. Training resumes at the published step with the same
    schedules, but with fresh optimiser moments, fresh vectors of power iteration, and this
    project's order of the data.

    Args:
      torch_path: a published `.pt` file.
      workdir: a new or empty folder.
      num_devices: number of devices that the model was trained on; the published batch size is per
        device.
      data_dir: folder of the data set; "" is its default folder.

    Returns:
      the step of the checkpoint.

    Raises:
      ValueError: if the file or the folder is not valid; the message says why.
    """
    if num_devices < 1:
        raise ValueError(f"num_devices must be at least 1, not {num_devices}")
    workdir = paths.parse(workdir, "workdir")
    published = torch_file.read(torch_path)
    config, variables = torch_checkpoint.convert_state(published.state, published.args)
    config.data.dir = data_dir
    try:
        _set_training(config, published, num_devices)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{torch_path}: batch_size, epochs and warmup_epochs must be numbers: {error}"
        ) from None
    state = fresh_state(build.build(config), variables, published.step)
    _check_new(workdir)
    with run_directory.open_for_training(workdir, config), Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, data_state(config, published.step))
        stored = {"args": published.args, "epoch": published.epoch}
        files.write_json(paths.parse(workdir) / PUBLISHED, stored, default=str)
    return published.step


def _check_new(workdir):
    if (paths.parse(workdir) / run_directory.CONFIG).exists():
        raise ValueError(f"{workdir} already holds a run: name a new folder, nothing was written")


def _set_training(config, published, num_devices):
    """Sets the length of the run, which the published code counts in epochs, in steps."""
    args = published.args
    if "batch_size" in args:
        config.train.batch_size = int(args["batch_size"]) * num_devices
    per_epoch = published.step / published.epoch if published.epoch else 0
    config.train.num_steps = max(published.step, 1)
    if per_epoch and "epochs" in args:
        config.train.num_steps = max(round(per_epoch * int(args["epochs"])), 1)
        config.optimizer.warmup_steps = round(per_epoch * args.get("warmup_epochs", 0))


def fresh_state(experiment: Experiment, variables: VariableDict, step: int) -> State:
    """Makes a training state with the given variables and a fresh optimiser state.

    Args:
      experiment: an `Experiment`.
      variables: {"params": ..., "batch_stats": ...}.
      step: number of updates done, from which learning rate and KL weight continue.
    """
    return _creator(experiment.model, experiment.optimizer)(variables, step, experiment.seed)


@shared
def _creator(model, optimizer):
    return jax.jit(
        partial(_fresh_state, model, optimizer),
        compiler_options=compiler.options(jax.default_backend(), runs_once=True),
    )


def _fresh_state(model, optimizer, variables, step, seed):
    spectral_key, train_key = jax.random.split(jax.random.key(seed))
    opt_state = optimizer.init(variables["params"])
    return State(
        step=jnp.asarray(step, jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optim.at_step(opt_state, jnp.asarray(step, jnp.int32)),
        spectral=initial_spectral_vectors(spectral_key, model, variables["params"]),
        key=jax.random.key_data(train_key),
        nonfinite_steps=jnp.zeros((), jnp.int32),
    )


def data_state(config: ConfigDict, step: int) -> dict[str, int]:
    """The state of `pipeline.TrainIterator` after `step` steps.

    If the data set is not available, it uses the published number of training images.
    """
    spec = build.build_data(config)
    try:
        count = pipeline.num_examples(spec, "train")
    except DataError:
        source = sources.SOURCES.get(spec.name)
        count = source.sizes.get("train", (0,))[0] if source else 0
    return {"step": step, "num_examples": count}


def export_run(
    workdir: str | Path,
    torch_path: str | Path,
    which: str = "latest",
    changes: Mapping[str, Any] | None = None,
) -> int:
    """Writes a run's checkpoint in the published format.

    Args:
      workdir: a run directory.
      torch_path: a new file.
      which: the checkpoint; see `CheckpointReader.restore`.
      changes: {"section.key": value} in its config; see `run_directory.load_config`.

    Returns:
      the step of the checkpoint.

    Raises:
      ValueError: if there is no checkpoint, the published code does not support the model, or the
        file exists.
    """
    workdir = paths.parse(workdir, "workdir")
    config = run_directory.load_config(workdir, changes)
    snapshot, position = load_snapshot(workdir, build.build_for_inference(config), which)
    steps_per_epoch = max(position["num_examples"] // config.train.batch_size, 1)
    stored = _read_published(workdir)
    published = torch_file.PublishedFile(
        state=torch_checkpoint.export_state(config, snapshot.variables),
        args={**export_args(config, steps_per_epoch), **stored.get("args", {})},
        epoch=stored.get("epoch", snapshot.step // steps_per_epoch),
        step=snapshot.step,
    )
    torch_file.write(torch_path, published, export_operations(config))
    return published.step


def _read_published(workdir):
    path = paths.parse(workdir) / PUBLISHED
    return json.loads(path.read_text()) if path.is_file() else {}
