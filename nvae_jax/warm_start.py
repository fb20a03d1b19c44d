"""Starts a new run from the variables of another run, or of a published checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax import checkpoint_reader, optim, paths, processes, run_directory, schema, sharding
from nvae_jax.experiment import Experiment
from nvae_jax.interop import torch_checkpoint, torch_file
from nvae_jax.state import State
from nvae_jax.trees import by_name

KEY = "train.init_from"
VARIABLES = ("params", "batch_stats")
MAX_NAMED = 3  # arrays of other shapes that an error message lists
PUBLISHED = (".pt", ".pth")


@dataclass(frozen=True)
class WarmStart:
    """Arrays with which a new run starts.

    Attributes:
      source: the source, as named in the config.
      step: number of updates done in the source.
      arrays: {name: array} with the shapes and shardings of the new training state.
      fresh: names of arrays of the new run that the source does not have.
      unused: names of arrays of the source that the new run does not have.
      has_spectral_vectors: whether `arrays` contains all vectors of power iteration.
    """

    source: str
    step: int
    arrays: dict[str, jax.Array]
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    has_spectral_vectors: bool = True

    def apply_to(self, state: State) -> State:
        """Replaces arrays of a fresh training state by these; its schedules start from step 0."""
        leaves, structure = jax.tree.flatten(state.stored())
        names = by_name(state.stored())
        leaves = [self.arrays.get(name, own) for name, own in zip(names, leaves, strict=True)]
        state, fresh = state.replace(**jax.tree.unflatten(structure, leaves)), state
        return state.replace(opt_state=optim.with_schedule_of(state.opt_state, fresh.opt_state))

    def describe(self) -> str:
        """Describes the source and the differences in one line."""
        text = f"starts from {self.source}, step {self.step}"
        if self.fresh:
            text += f"; initialised afresh: {schema.join_first(self.fresh)}"
        if self.unused:
            text += f"; not used: {schema.join_first(self.unused)}"
        return text


def parse(text: str) -> tuple[Path, Any]:
    """Parses RUN[@latest|best|STEP] to a path and the name of a checkpoint for
    `checkpoint_reader.CheckpointReader.restore`."""
    named = re.fullmatch(r"(.*)@(latest|best|\d+)", text, re.DOTALL)
    path, which = (
        (named[1], checkpoint_reader.parse_checkpoint_name(named[2])) if named else (text, "latest")
    )
    return paths.parse(path, KEY), which


def read(experiment: Experiment, workdir: str | Path) -> WarmStart:
    """Reads the arrays with which an experiment's new run in `workdir` starts.

    All processes call it together.

    Raises:
      ValueError: if the source does not exist, is damaged, contains NaN or infinity, is `workdir`
        itself, or has arrays of other shapes that must not be initialised afresh.
    """
    settings = experiment.start
    with processes.raise_together():
        path, which = parse(settings.init_from)
        _check(path, which, workdir, settings)
    places = by_name(experiment.abstract_state().stored())
    if path.suffix in PUBLISHED:
        with processes.raise_together():
            step, arrays = _read_published(path, places)
    else:
        step, arrays = _read_run(path, which, experiment, places)
    with processes.raise_together():
        return _select_fitting(settings, step, arrays, places)


def _check(path, which, workdir, settings):
    named = f"{KEY}={settings.init_from}"
    if path.suffix in PUBLISHED:
        if which != "latest":
            raise ValueError(f"{named}: a published file has only one checkpoint")
        if settings.init_optimizer:
            raise ValueError(f"{named}: a published file has no optimiser state for init_optimizer")
        if not path.is_file():
            raise ValueError(f"{named}: there is no file {path}")
        return
    if paths.same(path, workdir):
        raise ValueError(f"{named}: this is the run's own folder, name another one")
    if not (path / run_directory.CONFIG).is_file():
        missing = "" if path.exists() else ": it does not exist"
        raise ValueError(f"{named} is neither a run directory nor a published .pt file{missing}")


def _read_published(path, places):
    """Reads (step, {name: array}) from a published checkpoint."""
    published = torch_file.read(path)
    _, variables = torch_checkpoint.convert_state(published.state, published.args)
    arrays = {}
    for name, array in by_name(variables).items():
        place = _place(places, name, array.shape)
        arrays[name] = jax.make_array_from_callback(array.shape, place, array.__getitem__)
    return published.step, arrays


def _read_run(path, which, experiment, places):
    """Reads (step, {name: array}) from a run's checkpoint."""
    fields = [*VARIABLES, "spectral"]
    fields += ["average"] * (experiment.loop.ema_decay > 0)
    fields += ["opt_state"] * experiment.start.init_optimizer
    checkpoints = checkpoint_reader.CheckpointReader(path)
    found = checkpoints.restore_raw(fields, lambda name, shape: _place(places, name, shape), which)
    if found is None:
        raise ValueError(f"{KEY}: {path} has no checkpoint yet")
    return found


def _place(places, name, shape):
    """The sharding of an array in the training state, or replication if it has no such array."""
    if name in places and places[name].shape == shape:
        return places[name].sharding
    return sharding.replicated(next(iter(places.values())).sharding.mesh)


def _select_fitting(settings, step, arrays, places):
    """Makes a `WarmStart` of the arrays that fit the training state."""
    if broken := [name for name, array in arrays.items() if not _is_finite(array)]:
        raise ValueError(
            f"{KEY}={settings.init_from}: NaN or infinity in {len(broken)} array(s) of step "
            f"{step}, first {broken[0]}: name another checkpoint with @STEP"
        )
    wanted = [*VARIABLES, *["opt_state"] * settings.init_optimizer]
    names = [name for name in {**places, **arrays} if name.partition("/")[0] in wanted]
    shapes = {name: (_shape(arrays, name), _shape(places, name)) for name in names}
    different = {name: both for name, both in shapes.items() if both[0] != both[1]}
    fitting = {n: a for n, a in arrays.items() if _shape(places, n) == a.shape}
    if different and (settings.init_differences == "refuse" or not _has_parameters(fitting)):
        raise ValueError(_explain_mismatch(settings, different, len(names)))
    return WarmStart(
        settings.init_from,
        step,
        {**_averages(fitting, places), **fitting},
        fresh=tuple(name for name, (_, ours) in different.items() if ours is not None),
        unused=tuple(name for name, (_, ours) in different.items() if ours is None),
        has_spectral_vectors=all(n in fitting for n in places if n.startswith("spectral/")),
    )


def _is_finite(array):
    """Whether this process's shards of an array are finite."""
    return all(np.isfinite(np.asarray(part.data)).all() for part in array.addressable_shards)


def _shape(arrays, name):
    return arrays[name].shape if name in arrays else None


def _has_parameters(names):
    return any(name.startswith("params/") for name in names)


def _averages(arrays, places):
    """Initial values of an EMA that the source does not have: copies of the variables, because a
    donated state must not contain an array twice."""
    wanted = {f"average/{name}": array for name, array in arrays.items()}
    wanted = {name: array for name, array in wanted.items() if name in places}
    missing = {n: a for n, a in wanted.items() if n not in arrays}
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(missing) if missing else {}


def _explain_mismatch(settings, different, count):
    def side(shape, where):
        return f"not {where}" if shape is None else f"{shape} {where}"

    named = [
        f"{name} is {side(theirs, 'in the source')} and {side(ours, 'in this run')}"
        for name, (theirs, ours) in list(different.items())[:MAX_NAMED]
    ]
    more = len(different) - len(named)
    hint = (
        "change what makes the models differ, or set train.init_differences=fresh, which "
        "initialises such arrays afresh"
        if settings.init_differences == "refuse"
        else "none of its parameters fits"
    )
    return (
        f"{KEY}={settings.init_from}: {len(different)} of {count} arrays do not fit: "
        f"{'; '.join(named)}{f'; and {more} more' if more else ''}: {hint}"
    )
