"""Where a run's metrics and pictures go: its own folder, TensorBoard, Weights & Biases, or yours.

To add one: a subclass of `Logger`, given to `train`; for a name in --log, a row of `MODULES` too.
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

from nvae_jax import distributed, files, paths, pictures, run_directory

# Name in --log: module whose `make()` gives the logger. A name is that of the extra it needs, too.
MODULES = {"tensorboard": "nvae_jax.tensorboard", "wandb": "nvae_jax.weights_and_biases"}
UPLOAD_SECONDS = 120.0  # after which files of a bucket are copied there between checkpoints, too


class Logger:
    """Base class: override what you need, the other methods do nothing.

    The first process of a cluster calls it, between two steps, which wait for it. What `start`
    raises ends the run before its first step. An error of any other method is a line of warning,
    and training goes on: the run's own metrics.jsonl has every row.
    """

    def start(self, workdir: Path, config: ConfigDict, step: int) -> None:
        """Called once, before everything else.

        Args:
          workdir: the run directory.
          config: the run's, whole.
          step: where it starts or resumes. Rows after it, if there are, were lost with a run that
            was cut off, and come again.
        """

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Takes {name: number} of a step; docs/metrics.md has the names and units."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Takes a grid of pictures, uint8 (H, W, 3); the name is "samples" or "reconstructions"."""

    def flush(self) -> None:
        """Called before a checkpoint is written. What it took is to be safe when this returns: a
        run that is killed goes on from the checkpoint, and hands on only what comes after."""

    def close(self) -> None:
        """Called once, at the end of the run or at the error that ends it."""


class RunFolder(Logger):
    """The run's own record: rows in `metrics.jsonl`, pictures in `samples/`."""

    def start(self, workdir: Path, config: ConfigDict, step: int) -> None:
        """Drops the rows after `step`."""
        self._workdir, self._outbox = workdir, files.Outbox(workdir)
        self._path, self._uploaded = self._outbox.fetch(run_directory.METRICS), time.monotonic()
        if self._path.exists():
            run_directory.write_text(self._path, rows_until(self._path, step))

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Appends a line of JSON."""
        with files.errors_naming(self._path), open(self._path, "a") as file:
            file.write(files.to_json({"step": step, **row}) + "\n")
        if time.monotonic() > self._uploaded + UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Uploads the rows to a bucket."""
        self._outbox.upload()
        self._uploaded = time.monotonic()

    def close(self) -> None:
        """Uploads what is left to a bucket."""
        self._outbox.close()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes `samples/step_NNNNNNNN_NAME.png`."""
        path = self._workdir / "samples" / f"step_{step:08d}_{name}.png"
        pictures.save_png(path, image, enlarge=True)


def rows_until(path: Path, step: int) -> str:
    """The complete rows of a metrics.jsonl up to `step`, as its text."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            continue  # the row that a crash cut in two
    return "".join(kept)


def by_name(names: Iterable[str]) -> list[Logger]:
    """The loggers that --log names.

    Raises:
      ValueError: an unknown name, or one whose package is not installed.
    """
    return [_make(name) for name in dict.fromkeys(names) if name]


def _make(name: str) -> Logger:
    if name not in MODULES:
        raise ValueError(f"unknown logger {name!r}; known: {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name]).make()


class Loggers:
    """The run folder's record and other loggers as one; nothing on all processes but the first.

    Args:
      others: besides `RunFolder`. Their errors are lines of warning, as `Logger` says; those of
        the run's own record end the run.
    """

    def __init__(self, others: Iterable[Logger] = ()):
        self._record, self._others = [RunFolder()], list(others)
        if not distributed.is_primary():
            self._record, self._others = [], []
        self._failing = set()  # ids, since a logger may have no hash

    @contextlib.contextmanager
    def started(self, workdir: Path, config: ConfigDict, step: int) -> Iterator["Loggers"]:
        """Starts all, and closes them at the end.

        Raises:
          ValueError: one that cannot start, in all processes.
        """
        with contextlib.ExitStack() as at_the_end:
            with distributed.raise_together():
                for logger in [*self._record, *self._others]:
                    self._start(logger, paths.parse(workdir), config, step)
                    at_the_end.push(partial(self._close, logger))
            yield self

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Hands on {name: number} of a step."""
        for logger in self._record:
            logger.metrics(step, row)
        for logger in self._others:
            self._call("metrics", logger, step, row)

    def flush(self) -> None:
        """Called before a checkpoint is written."""
        for logger in self._record:
            logger.flush()
        for logger in self._others:
            self._call("flush", logger)

    def images(self, step: int, name: str, images: np.ndarray) -> None:
        """Hands on images (N, H, W, C) in [0, 1] as a grid."""
        grid = pictures.image_grid(pictures.to_uint8(images))
        for logger in self._record:
            logger.image(step, name, grid)
        for logger in self._others:
            self._call("image", logger, step, name, grid)

    @staticmethod
    def _start(logger, workdir, config, step):
        try:
            logger.start(workdir, config, step)
        except (ValueError, OSError):
            raise
        except Exception as error:  # of packages and users' code, in their own classes
            raise ValueError(f"{_name(logger)} cannot start: {_in_a_line(error)}") from error

    def _close(self, logger, error, *_):
        """At the end of a `with`: what ended it, if anything, comes before an error in closing."""
        if error is None and any(logger is own for own in self._record):
            logger.close()
        else:
            self._call("close", logger)

    def _call(self, method, logger, *args):
        """Calls a method, whose first error in a row becomes a line."""
        try:
            getattr(logger, method)(*args)
            self._failing.discard(id(logger))
        except Exception as error:  # a run of days must not end with it
            if id(logger) not in self._failing or method == "close":
                step = f" of step {args[0]}" if args else ""
                print(
                    f"warning: {_name(logger)}.{method}{step} failed, training goes on: "
                    f"{_in_a_line(error)}",
                    file=sys.stderr,
                    flush=True,
                )
            self._failing.add(id(logger))


def _name(logger):
    return f"the logger {type(logger).__name__}"


def _in_a_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
