"""Loggers receive a run's metrics and images: the run's folder, TensorBoard, Weights & Biases, or
your own.

To add one, subclass `Logger` and pass it to `train`. To select it with --log, add it to `MODULES`.
"""

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from nvae_jax import files, paths, pictures, processes, run_directory

# {name in --log, which is also the extra that it needs: module whose `make()` returns the logger}
MODULES = {"tensorboard": "nvae_jax.tensorboard", "wandb": "nvae_jax.weights_and_biases"}
UPLOAD_SECONDS = 120.0  # between uploads to a bucket from one checkpoint to the next


class Logger:
    """Base class of loggers; its methods do nothing, so override only those you need.

    Only the first process of a cluster calls them, between two training steps, which wait for them.
    An exception in `start` ends the run before its first step. An exception in any other method
    prints a warning and training continues; the run's metrics.jsonl always gets every row.
    """

    def start(self, workdir: Path, config: ConfigDict, step: int) -> None:
        """Called once before the other methods.

        Args:
          workdir: the run directory.
          config: the run's complete config.
          step: step that the run starts or resumes at. Rows of later steps that were logged before
            the run was interrupted will be logged again.
        """

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Logs the metrics {name: number} of a step; docs/metrics.md lists names and units."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a grid of images, uint8 (H, W, 3), named "samples" or "reconstructions"."""

    def flush(self) -> None:
        """Called before a checkpoint is written; must write everything logged so far.

        A run that is killed resumes from the checkpoint and logs only later steps again.
        """

    def close(self) -> None:
        """Called once when the run ends, normally or with an error."""


class RunFolder(Logger):
    """Writes metrics to `metrics.jsonl` and images to `samples/` in the run directory."""

    def start(self, workdir: Path, config: ConfigDict, step: int) -> None:
        """Opens metrics.jsonl and deletes its rows after `step`."""
        self._workdir, self._synced = workdir, files.SyncedFolder(workdir)
        self._path, self._uploaded = self._synced.fetch(run_directory.METRICS), time.monotonic()
        if self._path.exists():
            run_directory.write_text(self._path, rows_until(self._path, step))

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Appends a line of JSON."""
        with files.naming_errors(self._path), open(self._path, "a") as file:
            file.write(files.to_json({"step": step, **row}) + "\n")
        if time.monotonic() > self._uploaded + UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Uploads the rows to a bucket."""
        self._synced.upload()
        self._uploaded = time.monotonic()

    def close(self) -> None:
        """Uploads the remaining rows to a bucket."""
        self._synced.close()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes `samples/step_NNNNNNNN_NAME.png`."""
        path = self._workdir / "samples" / f"step_{step:08d}_{name}.png"
        pictures.save_png(path, image, enlarge=True)


def rows_until(path: Path, step: int) -> str:
    """Returns the rows of a metrics.jsonl up to `step` as text, without incomplete rows."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            continue  # a row that a crash truncated
    return "".join(kept)


def by_name(names: Iterable[str]) -> list[Logger]:
    """Makes the loggers named by --log.

    Raises:
      ValueError: if a name is unknown, or its package is not installed.
    """
    return [_make(name) for name in dict.fromkeys(names) if name]


def _make(name: str) -> Logger:
    if name not in MODULES:
        raise ValueError(f"unknown logger {name!r}; known: {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name]).make()


class Loggers:
    """Passes metrics and images to `RunFolder` and to other loggers, on the first process only.

    Args:
      others: loggers besides `RunFolder`. Their errors become warnings, as explained in `Logger`;
        errors of `RunFolder` end the run.
    """

    def __init__(self, others: Iterable[Logger] = ()):
        self._own, self._others = [RunFolder()], list(others)
        if not processes.is_primary():
            self._own, self._others = [], []
        self._failing = set()  # ids, because a logger may not be hashable

    @contextlib.contextmanager
    def started(self, workdir: Path, config: ConfigDict, step: int) -> Iterator["Loggers"]:
        """A context that starts all loggers, and closes them at its end.

        Raises:
          ValueError: in all processes, if a logger cannot start.
        """
        with contextlib.ExitStack() as stack:
            with processes.raise_together():
                for logger in [*self._own, *self._others]:
                    self._start(logger, paths.parse(workdir), config, step)
                    stack.push(partial(self._close, logger))
            yield self

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Logs the metrics {name: number} of a step."""
        for logger in self._own:
            logger.metrics(step, row)
        for logger in self._others:
            self._call("metrics", logger, step, row)

    def flush(self) -> None:
        """Makes all loggers write what they have; called before a checkpoint is written."""
        for logger in self._own:
            logger.flush()
        for logger in self._others:
            self._call("flush", logger)

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Logs images (N, H, W, C) in [0, 1] as one grid."""
        grid = pictures.image_grid(pictures.to_uint8(images))
        for logger in self._own:
            logger.image(step, name, grid)
        for logger in self._others:
            self._call("image", logger, step, name, grid)

    @staticmethod
    def _start(logger, workdir, config, step):
        try:
            logger.start(workdir, config, step)
        except (ValueError, OSError):
            raise
        except Exception as error:  # packages and users' code raise classes of their own
            raise ValueError(f"{_name(logger)} cannot start: {_one_line(error)}") from error

    def _close(self, logger, error, *_):
        """Closes a logger. An error in closing must not hide an `error` that is ending the run."""
        if error is None and any(logger is own for own in self._own):
            logger.close()
        else:
            self._call("close", logger)

    def _call(self, method, logger, *args):
        """Calls a logger's method; the first of several errors in a row prints a warning."""
        try:
            getattr(logger, method)(*args)
            self._failing.discard(id(logger))
        except Exception as error:  # it must not end a run of several days
            if id(logger) not in self._failing or method == "close":
                step = f" of step {args[0]}" if args else ""
                print(
                    f"warning: {_name(logger)}.{method}{step} failed, training continues: "
                    f"{_one_line(error)}",
                    file=sys.stderr,
                    flush=True,
                )
            self._failing.add(id(logger))


def _name(logger):
    return f"the logger {type(logger).__name__}"


def _one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
