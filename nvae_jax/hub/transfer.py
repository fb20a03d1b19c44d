"""A run directory from a model's files, and the files from a run directory."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from nvae_jax import build, checkpoint, files, loggers, paths, run_directory
from nvae_jax.hub import card, locations, model_folder
from nvae_jax.hub.model_folder import Model
from nvae_jax.interop.conversion import data_state, fresh_state


def pull(name: str, workdir: str | Path) -> Model:
    """Makes a run directory of a model, at once or not at all.

    It is a run like any other for everything that evaluates and samples; training goes on from it,
    with an optimiser without history.

    Args:
      name: of a shipped model (`locations.names`), hf://OWNER/NAME[@REVISION], or a folder.
      workdir: a new or empty folder, or one that has this model already.

    Returns:
      the model.

    Raises:
      ValueError: there is no such model, a file of it will not do, or the folder holds something
        else; one line.
    """
    workdir = paths.parse(workdir, "workdir")
    with locations.fetched(name) as folder:
        model = model_folder.read(folder)
        if _holds(workdir, model):
            return model
        if workdir.exists() and not workdir.is_dir():
            raise ValueError(f"{workdir} is a file, where a run directory is wanted")
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
    """Whether the folder is a run that has this model among its checkpoints."""
    try:
        _, found = checkpoint.load_run(workdir, model.snapshot.step)
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
    """Writes a run's model, with a card, to the Hub or a folder.

    Args:
      workdir: the run directory.
      name: hf://OWNER/NAME[@BRANCH] or a folder.
      which: checkpoint; see `checkpoint.Checkpoints.restore`.
      changes: {"section.key": value} in the config; see `run_directory.load_config`.
      dtype: of the parameters in the file: float32, bfloat16 or float16.
      license: an identifier of the Hub, for the card.
      note: a paragraph for the card.
      private: whether a repository that is made is private.
      overwrite: whether a folder with another model may be replaced.

    Returns:
      where it is, for people.

    Raises:
      ValueError: there is no such checkpoint, or the place will not do.
    """
    workdir = paths.parse(workdir, "workdir")
    experiment, snapshot = checkpoint.load_run(workdir, which, changes=changes)
    config = model_folder.shareable(run_directory.load_config(workdir, changes))
    snapshot = model_folder.rounded(snapshot, dtype)
    results = card.usable_results(model_folder.read_results(workdir), snapshot.fingerprint)
    model = Model(config, snapshot, _rows(workdir, snapshot.step), results)
    # What people are told to pull is no folder of this machine.
    source = name if name.startswith("hf:") else title(name)
    about = {"name": title(name), "source": source, "dtype": dtype, "license": license}
    text = card.write(experiment, model, note=note, **about)
    with tempfile.TemporaryDirectory() as folder:
        model_folder.write(Path(folder), model, text, dtype)
        return locations.publish(Path(folder), name, private=private, overwrite=overwrite)


def title(name: str) -> str:
    """The last word of a model's name, which its run directory and its card go by."""
    return name.rstrip("/").partition("@")[0].rsplit("/", 1)[-1]


def _rows(workdir, step):
    path = paths.parse(workdir) / run_directory.METRICS
    return loggers.rows_until(path, step) if path.is_file() else ""
