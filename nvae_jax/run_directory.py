"""A run's folder: its config, its lock, and the refusal of folders and configs that do not fit.

config.json  checkpoints/  metrics.jsonl  TensorBoard event files  samples/  eval/
config_history.jsonl: the configs that config.json held before the run was made longer
starts.jsonl: when, where and at which step the run was started, see `goodput`
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

from nvae_jax import bucket_lock, buckets, checkpoint_files, distributed, files, paths, schema
from nvae_jax.configs import base

CONFIG, LOCK = "config.json", ".lock"
HISTORY = "config_history.jsonl"
CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"
UNSAVED = ".unsaved"  # there from the start of a run until its first checkpoint
SHARING_SECONDS = 10  # that a network file system has to show all hosts what one of them wrote
# What may differ from the run's config, for one command or start: whole sections, and keys. It says
# where things are and how they are computed, not what: the numbers agree but for rounding.
FREE = (
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
LENGTH, PLANNED = "train.num_steps", "objective.schedule_steps"  # what --extend changes
_TO_EXTEND = "; --extend trains a finished run on to more steps"
# Version: the keys that it added, with the values that stand for what was computed before it.
ADDED = {
    1: {"data.max_value": 0},
    3: {
        "objective.schedule_steps": 0,
        "train.init_from": "",
        "train.init_optimizer": False,
        "train.init_differences": "refuse",
    },
}
# Version: the values that it renamed.
RENAMED = {2: {"model.implementation": {"library": "portable", "shifted": "cpu"}}}


def is_free(key: str) -> bool:
    """Whether "section.key" may differ from the run's config."""
    return key in FREE or key.partition(".")[0] in FREE


def load_config(workdir: str | Path, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of the run in `workdir`, locked.

    Args:
      workdir: the run directory.
      changes: {"section.key": value} of `FREE` keys that are to be others here.

    Raises:
      ValueError: the folder is no run directory, its config.json cannot be used, or a change is
        none that can be made.
    """
    path = paths.parse(workdir, "workdir") / CONFIG
    if not path.is_file():
        raise ValueError(f"{workdir} is not a run directory: it has no {CONFIG}")
    try:
        config = schema.checked(_migrated(json.loads(path.read_text())))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} cannot be used: it is no JSON, or cut short, at line {error.lineno}, "
            f"column {error.colno}"
        ) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {str(error).splitlines()[0]}") from None
    fixed = [key for key in changes or {} if key in schema.DEFAULTS and not is_free(key)]
    if fixed:
        raise ValueError(
            f"{workdir} holds a run, in which {schema.join_first(fixed)} cannot change: drop it, "
            f"or name another --workdir; what can change: {', '.join(FREE)}"
            + (_TO_EXTEND if LENGTH in fixed else "")
        )
    return schema.changed(config, changes)


def _migrated(stored):
    """What config.json holds, with the keys and the names of values that came after its version."""
    if not isinstance(stored, dict):
        raise ValueError("it holds no JSON object")
    flat = schema.flatten(stored)
    version = flat.get("version", 0)
    if type(version) is not int or not 0 <= version <= base.VERSION:
        raise ValueError(
            f"version must be an integer from 0 to {base.VERSION}, not {version!r}: newer ones are "
            "of newer programs"
        )
    for later in range(version + 1, base.VERSION + 1):
        flat = {**ADDED.get(later, {}), **flat}
        for key, names in RENAMED.get(later, {}).items():
            if flat.get(key) in names:
                flat[key] = names[flat[key]]
    if lacking := schema.missing_keys(flat):
        raise ValueError(
            f"it lacks {schema.join_first(lacking)}: write there what the run was trained with "
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
    """The given config, or where it is None that of the run in `workdir`.

    Args:
      workdir: the run directory.
      config: a ConfigDict or None.
      changes: {"section.key": value} to change in it; see `load_config`.
      extend: whether it is to make a finished run longer.

    Raises:
      ValueError: neither is there, or a change cannot be made.
    """
    workdir = paths.parse(workdir, "workdir")
    if extend:
        return _extended(workdir, config, changes)
    if config is not None:
        config = schema.changed(config, changes)
        return _as_planned(config, load_config(workdir)) if has_begun(workdir) else config
    if not (workdir / CONFIG).is_file():
        raise ValueError(f"{workdir} holds no run to resume: say which with --config=configs/X.py")
    return load_config(workdir, changes)


def _as_planned(config, own):
    """`config` with the run's own `PLANNED` length, where it does not say another."""
    planned = config.objective.schedule_steps or own.objective.schedule_steps
    return schema.changed(config, {PLANNED: planned})


def _extended(workdir, config, changes):
    """The config of the run in `workdir` made longer, or as it is if it has that length already."""
    own = load_config(workdir)
    if config is None and LENGTH not in (changes or {}):
        raise ValueError(f"--extend needs the new length of the run: --config.{LENGTH}=N")
    given = schema.changed(own if config is None else config, changes)
    given, steps = _as_planned(given, own), given.train.num_steps
    if steps < own.train.num_steps:
        raise ValueError(
            f"{workdir} is a run of {own.train.num_steps} steps: --extend makes it longer, not "
            f"{steps} steps long"
        )
    if steps == own.train.num_steps:
        return given
    _check_finished(workdir, own.train.num_steps)
    return schema.changed(given, {PLANNED: own.objective.schedule_steps or own.train.num_steps})


def _check_finished(workdir, num_steps):
    saved = checkpoint_files.steps(paths.parse(workdir) / CHECKPOINTS)
    if num_steps not in saved:
        raise ValueError(
            f"{workdir} is at step {max(saved, default=0)} of {num_steps}: --extend is for "
            "finished runs, train it to its end without"
        )


def _extend(workdir, config):
    """Makes the run as long as `config`. Its old config is kept first: whatever ends this in
    between leaves the run as it was."""
    own = load_config(workdir)
    longer = {key: schema.flatten(config)[key] for key in (LENGTH, PLANNED)}
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
    """Writes the whole config, at once or not at all."""
    write_text(paths.parse(workdir) / CONFIG, config.to_json(indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces a file's content so that a reader never sees half of it."""
    with files.atomic_write(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def open_for_training(
    workdir: str | Path, config: ConfigDict | None = None, *, extend: bool = False
) -> Iterator[ConfigDict]:
    """Locks `workdir` for one training run and gives the config of this start.

    config.json is not written again once a run `has_begun`: keys of `FREE` that differ later hold
    for one start. Of several processes that train as one, the first locks and writes; the others
    follow it.

    Args:
      workdir: a new or empty folder, or one that holds a run.
      config: what to train; None continues with the run's own.
      extend: whether the run is made as long as the config says.

    Raises:
      ValueError: the folder holds something else, another config, or a running process.
    """
    workdir = paths.parse(workdir, "workdir")
    with contextlib.ExitStack() as stack:
        with distributed.raise_together():
            if distributed.is_primary():
                stack.enter_context(_locked(workdir, config, extend))
        _check_shared(workdir)
        with distributed.raise_together():
            config = _same_config(workdir, config)
        yield config


@contextlib.contextmanager
def _locked(workdir, config, extend):
    """Makes and locks the folder, in the process that writes."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is a file, where a run directory is wanted")
    is_run = (workdir / CONFIG).is_file()
    others = [] if is_run or not workdir.exists() else [p.name for p in workdir.iterdir()]
    if set(others) - {LOCK}:
        raise ValueError(
            f"{workdir} is not empty and no run directory (it has no {CONFIG}): "
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
    taken = f"another process is training in {workdir}"
    if isinstance(workdir, buckets.BucketPath):
        with bucket_lock.held(workdir / LOCK, taken):
            yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with files.locked(workdir / LOCK, ValueError(taken)):
        yield


def has_begun(workdir: str | Path) -> bool:
    """Whether a run has anything to lose: a checkpoint, or rows of metrics. A start that failed
    ahead of its first step leaves neither, and holds nobody to its config."""
    checkpoints = paths.parse(workdir) / CHECKPOINTS
    return (checkpoints.is_dir() and any(checkpoints.iterdir())) or has_rows(workdir)


def has_rows(workdir: str | Path) -> bool:
    """Whether a run has rows of metrics."""
    metrics = paths.parse(workdir) / METRICS
    return metrics.is_file() and metrics.stat().st_size > 0


def _check_shared(workdir):
    """Refuses a folder that is not the same one for all processes."""
    mark = workdir / f".shared_{secrets.token_hex(8)}"  # a new name: no host has it in a cache
    with contextlib.ExitStack() as at_the_end:
        with distributed.raise_together():
            if distributed.is_primary():
                at_the_end.callback(mark.unlink, missing_ok=True)
                mark.touch()
        mark, begin = workdir / distributed.all_gather(mark.name)[0], time.monotonic()
        with distributed.raise_together():
            while not mark.exists():
                if time.monotonic() > begin + SHARING_SECONDS:
                    raise ValueError(
                        f"{workdir} on {socket.gethostname()} is not the folder that process 0 "
                        "sees there: all hosts of a cluster need a file system that they share"
                    )
                time.sleep(0.2)


def _same_config(workdir, config):
    """`config`, or the run's own where it is None. They may differ in free keys only."""
    own = load_config(workdir)
    if config is None:
        return own
    _check_same(workdir, own, config)
    return config


def _check_same(workdir, own, config):
    """Raises ValueError where another config differs from a run's own in keys that are not free."""
    stored, given = schema.flatten(own), schema.flatten(config)
    different = {
        key: f"{key} is {stored[key]!r} there and {value!r} here"
        for key, value in given.items()
        if stored[key] != value and not is_free(key)
    }
    if different:
        named = list(different.values())
        raise ValueError(
            f"{workdir} holds a run with another config: {'; '.join(named[:5])}"
            + (f" (and {len(named) - 5} more)" if len(named) > 5 else "")
            + ": name another --workdir, or drop what differs"
            + (_TO_EXTEND if LENGTH in different else "")
        )
