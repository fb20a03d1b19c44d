"""Saves the checkpoints of a run with Orbax: the whole state and the position in the data."""

import contextlib
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from nvae_jax import (
    buckets,
    checkpoint_files,
    files,
    lost_process,
    orbax_errors,
    orbax_manager,
    processes,
    run_directory,
)
from nvae_jax.checkpoint_reader import CheckpointReader
from nvae_jax.interrupt import Interrupted
from nvae_jax.state import State

SETTLE_SECONDS = 30.0


class SaveError(OSError):
    """A checkpoint could not be written. The message names its path."""


class Checkpoints(CheckpointReader):
    """The checkpoints of one run directory, to save and to read. Use it as a context manager: at
    its end it waits for the save in the background.

    Args:
      workdir: the run directory.
      keep: how many of the newest checkpoints to keep.
      keep_best: how many of those with the lowest `checkpoint_files.METRIC` to keep in addition.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2, keep_best: int = 0):
        super().__init__(workdir)
        self._saving: Any = None  # (step that is being written, future of its end)
        self._watcher = futures.ThreadPoolExecutor(1)
        policy = orbax_manager.Keep(keep, keep_best, self._scores, self._damaged)
        self._manager = orbax_manager.make_manager(self._directory, policy)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        shared = isinstance(error, Interrupted | FloatingPointError)  # raised in all processes
        if error and not shared and jax.process_count() > 1:  # others may be waiting for this one
            self._watcher.shutdown(wait=False)
            return
        # After another error, only that one is raised; Orbax can raise the same error repeatedly.
        for end in (self.wait, self._manager.close):
            with contextlib.suppress(Exception) if error else contextlib.nullcontext():
                end()
        self._watcher.shutdown()

    def written_step(self) -> int | None:
        """The newest complete checkpoint's step, or None; another one may be being written."""
        return max(checkpoint_files.steps(self._directory), default=None)

    def save(
        self, state: State, data_state: Any, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Saves `state` and the data iterator's JSON-compatible state in the background, with the
        `metrics` {name: number} of this state if it has been evaluated.

        Raises:
          SaveError: if this save fails, or the one before, which was still being written.
        """
        step = int(state.step)
        self.wait()
        if step == self.latest_step():
            return
        if step in self._damaged:
            self._remove(step)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state.stored()),
            data=ocp.args.JsonSave(data_state),
            evaluation=ocp.args.JsonSave(files.nan_to_none(metrics or {})),
        )
        self._scores[step] = checkpoint_files.score(metrics or {})
        self._manager.failure = None  # forget an error of the save before
        with self._save_errors(step):
            self._manager.save(step, args=args, force=True)
        # Orbax's own future makes a host of a cluster wait until all hosts have finished.
        self._saving = step, self._watcher.submit(self._manager.wait_until_finished)

    def check(self) -> None:
        """Raises SaveError if the save in the background has failed, without waiting for it."""
        if self._saving is not None and (self._saving[1].done() or self._manager.failure):
            self.wait()

    def wait(self) -> None:
        """Waits for the save in the background; raises SaveError if it fails."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with self._save_errors(saving[0]):
                self._wait_for(saving[1])
            (self._directory.parent / run_directory.UNSAVED).unlink(missing_ok=True)

    def _wait_for(self, end):
        while jax.process_count() > 1 and not futures.wait([end], 0.5).done:
            if self._manager.failure:
                raise self._manager.failure
        self._manager.wait_until_finished()

    def settle(self) -> None:
        """Waits for the save in the background, in a process of a cluster that ends with another
        error. It does not wait long, because the others may be waiting for this process."""
        ending = [self._saving[1]] if self._saving is not None else []
        if not futures.wait(ending, SETTLE_SECONDS).not_done:
            with contextlib.suppress(Exception):
                self.wait()

    @contextlib.contextmanager
    def _save_errors(self, step):
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            if lost_process.is_reason_of(error):
                raise
            if processes.is_primary():  # makes room for the next try
                for part in checkpoint_files.unfinished(self._directory, step):
                    files.remove_tree(part)
            path = self._directory / str(step)
            why = orbax_errors.reason(error)
            if isinstance(path, buckets.BucketPath):
                why = buckets.reason(error, path.scheme)
            raise SaveError(f"{path}: cannot be written ({why})") from error

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds `metrics` to the saved `step`, like the argument of `save`."""
        if processes.is_primary():
            checkpoint_files.write_metrics(self._directory, step, metrics)
        self._scores[step] = checkpoint_files.score(metrics)

    def _remove(self, step):
        """Removes a damaged checkpoint, so that it can be saved again."""
        path = self._directory / str(step)
        if processes.is_primary():
            files.remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
        processes.barrier(f"damaged checkpoint {step}")
        self._manager.reload()
        self._damaged.discard(step)

    def _steps(self):
        return set(self._manager.all_steps())
