"""A run's folder: its config, its lock, and checks that a folder and a config belong together.

config.json  checkpoints/  metrics.jsonl  TensorBoard event files  samples/  eval/
config_history.jsonl: the configs that config.json held before the run was extended
starts.jsonl: when, where and at which step the run was started; see `goodput`
"""

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from nvae_jax import bucket_lock, buckets, checkpoint_files, files, paths, processes, schema
from nvae_jax.configs import base

CONFIG, LOCK = "config.json", ".lock"
HISTORY = "config_history.jsonl"
CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"
UNSAVED = ".unsaved"  # exists from the start of a run until its first checkpoint
SHARING_SECONDS = 10  # for a network file system to show all hosts what one of them wrote
# Sections and keys that can differ from the run's config for one command or one start. They set
# where things are and how they are computed; results change only by rounding errors.
CHANGEABLE = (
    "data.dir",
    "data.workers",
    "data.skip_corrupt",
    "model.unroll",
    "model.remat",
    "model.implementation",
    "train.max_nonfinite_steps",
    "eval",
    "mesh",
    "distributed",
    "log",
    "checkpoint",
)
NUM_STEPS, SCHEDULE_STEPS = "train.num_steps", "objective.schedule_steps"  # changed by --extend
_EXTEND_HINT = "; --extend trains a finished run for more steps"
# {version of the config: {key that it added: value with the behaviour of earlier versions}}
ADDED = {
    1: {"data.max_value": 0},
    3: {
        "objective.schedule_steps": 0,
        "train.init_from": "",
        "train.init_optimizer": False,
        "train.init_differences": "refuse",
    },
}
# {version of the config: {key: {old value: new value}}}
RENAMED = {2: {"model.implementation": {"library": "portable", "shifted": "cpu"}}}


def is_changeable(key: str) -> bool:
    """Whether the value of "section.key" can differ from the run's config."""
    return key in CHANGEABLE or key.partition(".")[0] in CHANGEABLE


def load_config(workdir: str | Path, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Loads the config of the run in `workdir`, locked.

    Args:
      workdir: the run directory.
      changes: {"section.key": value} of `CHANGEABLE` keys to change.

    Raises:
      ValueError: if the folder is not a run directory, its config.json is not valid, or a change
        is not allowed.
    """
    path = paths.parse(workdir, "workdir") / CONFIG
    if not path.is_file():
        raise ValueError(f"{workdir} is not a run directory: it has no {CONFIG}")
    try:
        config = schema.checked(_migrated(json.loads(path.read_text())))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} cannot be used: it is not valid JSON, or truncated, at line {error.lineno}, "
            f"column {error.colno}"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {str(error).splitlines()[0]}") from None
    fixed = [key for key in changes or {} if key in schema.DEFAULTS and not is_changeable(key)]
    if fixed:
        raise ValueError(
            f"{workdir} holds a run, in which {schema.join_first(fixed)} cannot change: drop it, "
            f"or name another --workdir; what can change: {', '.join(CHANGEABLE)}"
            + (_EXTEND_HINT if NUM_STEPS in fixed else "")
        )
    return schema.changed(config, changes)


def _migrated(stored):
    """Converts the content of config.json to the current version of the config."""
    if not isinstance(stored, dict):
        raise ValueError("it is not a JSON object")
    flat = schema.flatten(stored)
    version = flat.get("version", 0)
    if type(version) is not int or not 0 <= version <= base.VERSION:
        raise ValueError(
            f"version must be an integer from 0 to {base.VERSION}, not {version!r}: later versions "
            "need a newer nvae_jax"
        )
    for later in range(version + 1, base.VERSION + 1):
        flat = {**ADDED.get(later, {}), **flat}
        for key, names in RENAMED.get(later, {}).items():
            if flat.get(key) in names:
                flat[key] = names[flat[key]]
    if lacking := schema.missing_keys(flat):
        raise ValueError(
            f"it lacks {schema.join_first(lacking)}: add the values that the run was trained with "
            "(today's defaults are in configs/base.py)"
        )
    return traverse_util.unflatten_dict({**flat, "version": base.VERSION}, sep=".")


def chosen_config(
    workdir: str | Path,
    config: ConfigDict | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    extend: bool = False,
) -> ConfigDict:
    """Returns the given config with changes, or, if it is None, that of the run in `workdir`.

    Args:
      workdir: the run directory.
      config: a ConfigDict or None.
      changes: {"section.key": value} to change in it; see `load_config`.
      extend: whether to extend a finished run to more steps.

    Raises:
      ValueError: if there is neither a config nor a run, or a change is not allowed.
    """
    workdir = paths.parse(workdir, "workdir")
    if extend:
        return _extended(workdir, config, changes)
    if config is not None:
        config = schema.changed(config, changes)
        return _with_schedule_of(config, load_config(workdir)) if has_begun(workdir) else config
    if not (workdir / CONFIG).is_file():
        raise ValueError(
            f"{workdir} holds no run to resume: to start one, pass --config=configs/X.py"
        )
    return load_config(workdir, changes)


def _with_schedule_of(config, own):
    """`config` with the schedule length of the run's `own` config, unless it sets another."""
    steps = config.objective.schedule_steps or own.objective.schedule_steps
    return schema.changed(config, {SCHEDULE_STEPS: steps})


def _extended(workdir, config, changes):
    """The config of the run in `workdir` with more steps; schedules keep their length.

    If the run already has that many steps, its config is returned unchanged.
    """
    own = load_config(workdir)
    if config is None and NUM_STEPS not in (changes or {}):
        raise ValueError(f"--extend needs the new number of steps: --config.{NUM_STEPS}=N")
    given = schema.changed(own if config is None else config, changes)
    given, steps = _with_schedule_of(given, own), given.train.num_steps
    if steps < own.train.num_steps:
        raise ValueError(
            f"{workdir} is a run of {own.train.num_steps} steps: --extend cannot shorten it to "
            f"{steps} steps"
        )
    if steps == own.train.num_steps:
        return given
    _check_finished(workdir, own.train.num_steps)
    schedule_steps = own.objective.schedule_steps or own.train.num_steps
    return schema.changed(given, {SCHEDULE_STEPS: schedule_steps})


def _check_finished(workdir, num_steps):
    saved = checkpoint_files.steps(paths.parse(workdir) / CHECKPOINTS)
    if num_steps not in saved:
        raise ValueError(
            f"{workdir} is at step {max(saved, default=0)} of {num_steps}: --extend needs a "
            "finished run; finish it without --extend first"
        )


def _extend(workdir, config):
    """Extends the run to the number of steps in `config`.

    The old config is first added to the history, so that an interruption leaves the run unchanged.
    """
    own = load_config(workdir)
    longer = {key: schema.flatten(config)[key] for key in (NUM_STEPS, SCHEDULE_STEPS)}
    longer = schema.changed(own, longer)
    _check_same(workdir, longer, config)
    if longer.train.num_steps <= own.train.num_steps:
        return
    _check_finished(workdir, own.train.num_steps)
    path = paths.parse(workdir) / HISTORY
    rows = path.read_text().splitlines() if path.is_file() else []
    row = files.to_json({"until_step": own.train.num_steps, "config": own.to_dict()})
    if row not in rows[-1:]:
        write_text(path, "".join(f"{line}\n" for line in [*rows, row]))
    save_config(workdir, longer)


def save_config(workdir: str | Path, config: ConfigDict) -> None:
    """Writes the complete config to config.json, atomically."""
    write_text(paths.parse(workdir) / CONFIG, config.to_json(indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces the content of a text file atomically."""
    with files.atomic_write(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def open_for_training(
    workdir: str | Path, config: ConfigDict | None = None, *, extend: bool = False
) -> Iterator[ConfigDict]:
    """A context that locks `workdir` for training and yields the config to train with.

    Once a run `has_begun`, its config.json stays as it is: changes of `CHANGEABLE` keys apply to
    one start only. In a cluster the first process locks the folder and writes to it.

    Args:
      workdir: a new or empty folder, or one that holds a run.
      config: the config to train; None uses the run's own.
      extend: whether to extend the run to the number of steps in the config.

    Raises:
      ValueError: if the folder holds something else or a run with another config, or another
        process is training in it.
    """
    workdir = paths.parse(workdir, "workdir")
    with contextlib.ExitStack() as stack:
        with processes.raise_together():
            if processes.is_primary():
                stack.enter_context(_locked(workdir, config, extend))
        _check_shared(workdir)
        with processes.raise_together():
            config = _same_config(workdir, config)
        yield config


@contextlib.contextmanager
def _locked(workdir, config, extend):
    """Creates and locks the folder; called by the first process only."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file, not a run directory")
    is_run = (workdir / CONFIG).is_file()
    others = [] if is_run or not workdir.exists() else [p.name for p in workdir.iterdir()]
    if set(others) - {LOCK}:
        raise ValueError(
            f"{workdir} is not empty and not a run directory (it has no {CONFIG}): "
            "name a new folder, nothing was written"
        )
    chosen = chosen_config(workdir, config)
    with _lock(workdir):
        if not (workdir / CONFIG).is_file() or (config is not None and not has_begun(workdir)):
            save_config(workdir, chosen)
        if extend:
            _extend(workdir, config)
        yield


@contextlib.contextmanager
def _lock(workdir):
    refusal = f"another process is training in {workdir}"
    if isinstance(workdir, buckets.BucketPath):
        with bucket_lock.locked(workdir / LOCK, refusal):
            yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with files.locked(workdir / LOCK, ValueError(refusal)):
        yield


def has_begun(workdir: str | Path) -> bool:
    """Whether a run has a checkpoint or rows of metrics.

    A start that failed before its first step leaves neither, and another config can replace its
    config.
    """
    checkpoints = paths.parse(workdir) / CHECKPOINTS
    return (checkpoints.is_dir() and any(checkpoints.iterdir())) or has_rows(workdir)


def has_rows(workdir: str | Path) -> bool:
    """Whether a run has rows of metrics."""
    metrics = paths.parse(workdir) / METRICS
    return metrics.is_file() and metrics.stat().st_size > 0


def _check_shared(workdir):
    """Raises ValueError in all processes if they do not share the folder."""
    mark = workdir / f".shared_{secrets.token_hex(8)}"  # a new name, which no host has cached
    with contextlib.ExitStack() as stack:
        with processes.raise_together():
            if processes.is_primary():
                stack.callback(mark.unlink, missing_ok=True)
                mark.touch()
        mark, begin = workdir / processes.all_gather(mark.name)[0], time.monotonic()
        with processes.raise_together():
            while not mark.exists():
                if time.monotonic() > begin + SHARING_SECONDS:
                    raise ValueError(
                        f"{workdir} on {socket.gethostname()} is not the same folder as on the "
                        "host of process 0: all hosts of a cluster need a shared file system"
                    )
                time.sleep(0.2)


def _same_config(workdir, config):
    """Returns `config`, or the run's own if it is None. Raises ValueError if they differ in keys
    that cannot change."""
    own = load_config(workdir)
    if config is None:
        return own
    _check_same(workdir, own, config)
    return config


def _check_same(workdir, own, config):
    """Raises ValueError if a config differs from a run's `own` in keys that cannot change."""
    stored, given = schema.flatten(own), schema.flatten(config)
    different = {
        key: f"{key} is {stored[key]!r} in the run and {value!r} now"
        for key, value in given.items()
        if stored[key] != value and not is_changeable(key)
    }
    if different:
        named = list(different.values())
        raise ValueError(
            f"{workdir} holds a run with another config: {'; '.join(named[:5])}"
            + (f" (and {len(named) - 5} more)" if len(named) > 5 else "")
            + ": name another --workdir, or drop what differs"
            + (_EXTEND_HINT if NUM_STEPS in different else "")
        )
