"""Converts a model's files to a run directory, and a run to such files."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from nvae_jax import build, checkpoint, files, loading, loggers, paths, run_directory
from nvae_jax.hub import card, locations, model_folder
from nvae_jax.hub.model_folder import Model
from nvae_jax.interop.conversion import data_state, fresh_state


def pull(name: str, workdir: str | Path) -> Model:
    """Makes a run directory of a model, atomically.

    It can be evaluated and sampled like any other run. Training can be resumed, with a fresh
    optimiser state.

    Args:
      name: name of a shipped model (`locations.names`), hf://OWNER/NAME[@REVISION], or a folder.
      workdir: a new or empty folder, or one that already holds this model.

    Returns:
      the model.

    Raises:
      ValueError: if there is no such model, a file of it is not valid, or the folder holds
        something else; one line.
    """
    workdir = paths.parse(workdir, "workdir")
    with locations.fetched(name) as folder:
        model = model_folder.read(folder)
        if _holds(workdir, model):
            return model
        if workdir.exists() and not workdir.is_dir():
            raise ValueError(f"{workdir} is a file, not a run directory")
        if workdir.exists() and any(workdir.iterdir()):
            raise ValueError(f"{workdir} is not empty: name a new folder, nothing was written")
        if paths.is_bucket(workdir):
            _write_run(workdir, model, folder)
            return model
        with locations.beside(workdir.absolute()) as parent:
            _write_run(parent / "run", model, folder)
            os.replace(parent / "run", workdir)
    return model


def _holds(workdir, model):
    """Whether the folder is a run with a checkpoint of this model."""
    try:
        _, found = loading.load_run(workdir, model.snapshot.step)
    except ValueError:
        return False
    return found.fingerprint == model.snapshot.fingerprint


def _write_run(workdir, model, folder):
    config, step = model.config, model.snapshot.step
    state = fresh_state(build.build_for_inference(config), model.snapshot.variables, step)
    if config.train.ema_decay:
        state = state.replace(average=jax.tree.map(jax.numpy.copy, state.trained))
    with (
        run_directory.open_for_training(workdir, config),
        checkpoint.Checkpoints(workdir) as checkpoints,
    ):
        checkpoints.save(state, data_state(config, step))
    if model.metrics:
        run_directory.write_text(workdir / run_directory.METRICS, model.metrics)
    for name, result in (model.results or {}).items():
        files.write_json(workdir / model_folder.RESULTS / name, result)
    if (folder / model_folder.CARD).is_file():
        text = (folder / model_folder.CARD).read_text()
        run_directory.write_text(workdir / model_folder.CARD, text)


def push(
    workdir: str | Path,
    name: str,
    *,
    which: str | int = "latest",
    changes: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    license: str = "",
    note: str = "",
    private: bool = False,
    overwrite: bool = False,
) -> str:
    """Publishes a run's model, with a card, on the Hub or in a folder.

    Args:
      workdir: the run directory.
      name: hf://OWNER/NAME[@BRANCH] or a folder.
      which: the checkpoint; see `checkpoint_reader.CheckpointReader.restore`.
      changes: {"section.key": value} in the config; see `run_directory.load_config`.
      dtype: type of the parameters in the file: float32, bfloat16 or float16.
      license: identifier of a licence on the Hub, for the card.
      note: a paragraph for the card.
      private: whether a newly created repository is private.
      overwrite: whether to replace another model in a folder.

    Returns:
      the published location, for the user.

    Raises:
      ValueError: if there is no such checkpoint, or the location is not valid.
    """
    workdir = paths.parse(workdir, "workdir")
    experiment, snapshot = loading.load_run(workdir, which, changes=changes)
    config = model_folder.shareable(run_directory.load_config(workdir, changes))
    snapshot = model_folder.rounded(snapshot, dtype)
    results = card.usable_results(model_folder.read_results(workdir), snapshot.fingerprint)
    model = Model(config, snapshot, _rows(workdir, snapshot.step), results)
    # The card must not name a local folder.
    source = name if name.startswith("hf:") else title(name)
    fields = {"name": title(name), "source": source, "dtype": dtype, "license": license}
    text = card.write(experiment, model, note=note, **fields)
    with tempfile.TemporaryDirectory() as folder:
        model_folder.write(Path(folder), model, text, dtype)
        return locations.publish(Path(folder), name, private=private, overwrite=overwrite)


def title(name: str) -> str:
    """The last part of a model's name, used in its card and for its run directory."""
    return name.rstrip("/").partition("@")[0].rsplit("/", 1)[-1]


def _rows(workdir, step):
    path = paths.parse(workdir) / run_directory.METRICS
    return loggers.rows_until(path, step) if path.is_file() else ""
