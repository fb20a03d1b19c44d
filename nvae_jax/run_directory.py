"""A run's folder: its config, its lock, and the refusal of folders and configs that do not fit.

config.json  checkpoints/  metrics.jsonl  TensorBoard event files  samples/  eval/
"""

import contextlib
import json
import secrets
import socket
import time
from pathlib import Path

from configs import base
from nvae_jax import distributed, files

CONFIG, LOCK = "config.json", ".lock"
SHARING_SECONDS = 10  # that a network file system has to show all hosts what one of them wrote
# Keys that may change between two starts of a run: they do not change what it computes.
FREE_KEYS = (
    "data.dir",
    "data.workers",
    "data.skip_corrupt",
    "eval.",
    "mesh.",
    "distributed.",
    "log.",
    "checkpoint.",
)


def load_config(workdir):
    """The config of the run in `workdir`, locked.

    Raises:
      ValueError: the folder is no run directory, or its config.json cannot be used.
    """
    path = Path(workdir) / CONFIG
    if not path.is_file():
        raise ValueError(f"{workdir} is not a run directory: it has no {CONFIG}")
    try:
        stored = json.loads(path.read_text())
        config = base.get_config()
        config.update(stored)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return config


def chosen_config(workdir, config):
    """The given config, or where it is None that of the run in `workdir`.

    Raises:
      ValueError: neither is there.
    """
    if config is not None:
        return config
    if not (Path(workdir) / CONFIG).is_file():
        raise ValueError(f"{workdir} holds no run to resume: say which with --config=configs/X.py")
    return load_config(workdir)


def save_config(workdir, config):
    """Writes the whole config, at once or not at all."""
    write_text(Path(workdir) / CONFIG, config.to_json(indent=2, sort_keys=True) + "\n")


def write_text(path, text):
    """Replaces a file's content so that a reader never sees half of it."""
    with files.replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def open_for_training(workdir, config=None):
    """Locks `workdir` for one training run and gives the run's config.

    Of several processes that train as one, the first locks and writes; the others follow it.

    Args:
      workdir: a new or empty folder, or one that holds a run.
      config: what to train; None continues with the run's own.

    Raises:
      ValueError: the folder holds something else, another config, or a running process.
    """
    workdir = Path(workdir)
    with contextlib.ExitStack() as stack:
        with distributed.together():
            if distributed.is_primary():
                config = stack.enter_context(_locked(workdir, config))
        _check_shared(workdir)
        with distributed.together():
            config = config if distributed.is_primary() else load_config(workdir)
        yield config


@contextlib.contextmanager
def _locked(workdir, config):
    """`open_for_training`, for the process that writes."""
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
    workdir.mkdir(parents=True, exist_ok=True)
    taken = ValueError(f"another process is training in {workdir}")
    with files.locked(workdir / LOCK, taken):
        if is_run and config is not None:
            _check_same(workdir, load_config(workdir), config)
        save_config(workdir, chosen)
        yield chosen


def _check_shared(workdir):
    """Refuses a folder that is not the same one for all processes."""
    mark = workdir / f".shared_{secrets.token_hex(8)}"  # a new name: no host has it in a cache
    with contextlib.ExitStack() as at_the_end:
        with distributed.together():
            if distributed.is_primary():
                at_the_end.callback(mark.unlink, missing_ok=True)
                mark.touch()
        mark, begin = workdir / distributed.exchange(mark.name)[0], time.monotonic()
        with distributed.together():
            while not mark.exists():
                if time.monotonic() > begin + SHARING_SECONDS:
                    raise ValueError(
                        f"{workdir} on {socket.gethostname()} is not the folder that process 0 "
                        "sees there: all hosts of a cluster need a file system that they share"
                    )
                time.sleep(0.2)


def _check_same(workdir, stored, given):
    stored, given = flatten(stored.to_dict()), flatten(given.to_dict())
    different = [
        f"{key} is {stored.get(key)!r} there and {given.get(key)!r} here"
        for key in sorted({**stored, **given})
        if stored.get(key) != given.get(key) and not key.startswith(FREE_KEYS)
    ]
    if different:
        raise ValueError(
            f"{workdir} holds a run with another config: {'; '.join(different[:5])}"
            + (f" (and {len(different) - 5} more)" if len(different) > 5 else "")
        )


def flatten(tree, prefix=""):
    """A nested dict as {"section.key": value}."""
    flat = {}
    for key, value in tree.items():
        flat.update(
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
