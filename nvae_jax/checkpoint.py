"""Saving and restoring a run with Orbax: the whole state and the position in the data."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from nvae_jax import (
    buckets,
    build,
    checkpoint_files,
    files,
    hosts,
    lost_process,
    orbax_errors,
    orbax_s3,
    paths,
    processes,
    run_directory,
)
from nvae_jax.interrupt import Interrupted
from nvae_jax.state import Snapshot, State
from nvae_jax.trees import by_name

orbax_errors.silence()

SETTLE_SECONDS = 30.0


class SaveError(OSError):
    """A checkpoint could not be written. The message names its path."""


class Checkpoints:
    """The checkpoints of one run directory. Use it as a context manager: at its end it waits for
    the save in the background.

    Args:
      workdir: the run directory.
      keep: how many of the newest checkpoints to keep.
      keep_best: how many of those with the lowest `checkpoint_files.METRIC` to keep in addition.
      read_only: whether to make no folder and remove nothing.
    """

    def __init__(
        self, workdir: str | Path, *, keep: int = 2, keep_best: int = 0, read_only: bool = False
    ):
        self._directory = (paths.parse(workdir) / run_directory.CHECKPOINTS).absolute()
        if str(self._directory).startswith("s3://"):
            orbax_s3.teach()
        self._saving: Any = None  # (step that is being written, future of its end)
        self._watcher = futures.ThreadPoolExecutor(1)
        steps = checkpoint_files.steps(self._directory)
        self._scores = {s: checkpoint_files.read_score(self._directory, s) for s in steps}
        self._damaged = set()  # steps whose checkpoint could not be read
        policy = _Keep(keep, keep_best, self._scores, self._damaged)
        self._manager: Any = None if read_only else _manager(self._directory, policy)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, *_):
        shared = isinstance(error, Interrupted | FloatingPointError)  # raised in all processes
        if error and not shared and jax.process_count() > 1:  # others may be waiting for this one
            self._watcher.shutdown(wait=False)
            return
        # After another error, only that one is raised; Orbax can raise the same error repeatedly.
        for end in (self.wait, self._manager.close) if self._manager is not None else ():
            with contextlib.suppress(Exception) if error else contextlib.nullcontext():
                end()
        self._watcher.shutdown()

    def latest_step(self) -> int | None:
        """The newest saved step, or None. Checkpoints that could not be read do not count."""
        return max(self._steps() - self._damaged, default=None)

    def written_step(self) -> int | None:
        """The newest complete checkpoint's step, or None; another one may be being written."""
        return max(checkpoint_files.steps(self._directory), default=None)

    def best_step(self) -> int | None:
        """The saved step with the lowest score, or None if no step has a score."""
        return next(iter(_rank(self._steps() - self._damaged, self._scores)), None)

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

    def is_scored(self, step: int) -> bool:
        """Whether the saved `step` has a score."""
        return self._scores.get(step, math.inf) < math.inf

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

    def restore(
        self, abstract_state: State, which: str | int = "latest"
    ) -> tuple[State, Any] | None:
        """Restores a checkpoint; if it cannot be read, the next one in the order of `which`.

        All processes of a cluster must call it, and get the same checkpoint, which all of them can
        read.

        Args:
          abstract_state: the state's shapes, from `jax.eval_shape`.
          which: "latest", "best" (by its score), or a step, which is not replaced by another one.

        Returns:
          (state, data_state), or None if there is no checkpoint.

        Raises:
          ValueError: if there are checkpoints, but not the requested one, or none can be read.
        """

        def read(step):
            stored, data_state = checkpoint_files.read(
                self._directory, step, abstract_state.stored()
            )
            return abstract_state.replace(**stored), data_state

        return self._first_readable(which, read)

    def restore_snapshot(
        self, abstract_variables: Any, which: str | int = "latest", *, averaged: bool = False
    ) -> tuple[Snapshot, Any] | None:
        """Reads the part of a checkpoint that inference needs, without the optimiser's moments.

        Args:
          abstract_variables: the model's variables, with their shardings.
          which: as in `restore`.
          averaged: whether training keeps an EMA, which is then read instead of the variables.

        Returns:
          (`Snapshot`, data_state), or None if there is no checkpoint.

        Raises:
          ValueError: as `restore`.
        """

        def read(step):
            wanted = {"average": abstract_variables} if averaged else abstract_variables
            found, data_state = checkpoint_files.read(self._directory, step, wanted)
            return Snapshot(step, found["average"] if averaged else found), data_state

        return self._first_readable(which, read)

    def restore_raw(
        self,
        fields: Sequence[str],
        place: Callable[[str, tuple[int, ...]], Any],
        which: str | int = "latest",
    ) -> tuple[int, dict[str, Any]] | None:
        """Reads fields of a checkpoint in their stored shapes, for any model.

        Args:
          fields: fields of a training state; those that the checkpoint lacks are left out.
          place: a function from (name of an array, shape) to its sharding.
          which: as in `restore`.

        Returns:
          (step, {name: array}), or None if there is no checkpoint.

        Raises:
          ValueError: as `restore`.
        """

        def read(step):
            stored = checkpoint_files.stored_shapes(self._directory, step)
            wanted = {field: stored[field] for field in fields if field in stored}
            names = iter(by_name(wanted))
            wanted = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(
                    a.shape, a.dtype, sharding=place(next(names), a.shape)
                ),
                wanted,
            )
            found, _ = checkpoint_files.read(self._directory, step, wanted)
            return step, by_name(found)

        return self._first_readable(which, read)

    def _first_readable(self, which, read):
        first = None
        for step in self._candidates(which):
            found, problem = _attempt(read, step)
            problem = _first_problem(processes.all_gather(problem))
            if problem is None:
                return found
            self._damaged.add(step)
            first = first or f"step {step}: {problem}"
            if processes.is_primary() and step != which:
                message = "checkpoint of step %s cannot be read, trying the next one: %s"
                logging.warning(message, step, problem)
        if first:
            raise ValueError(f"no checkpoint in {self._directory} can be read ({first})")
        return None

    def _steps(self):
        if self._manager is None:
            return set(checkpoint_files.steps(self._directory))
        return set(self._manager.all_steps())

    def _candidates(self, which):
        """The steps to try, in order; the same in all processes."""
        scores = {}
        for scores_of_process in processes.all_gather(list(self._scores.items())):
            scores.update(scores_of_process)
        newest_first, best_first = sorted(scores, reverse=True), _rank(scores, scores)
        if not scores or which == "latest":
            return newest_first
        if which == "best":
            if not best_first:
                raise ValueError(
                    f"no checkpoint in {self._directory} was evaluated in training "
                    "(config.eval.every_steps): there is no best one"
                )
            return best_first
        if which not in scores:
            steps = ", ".join(map(str, sorted(scores)))
            raise ValueError(f"{self._directory} has no checkpoint of step {which}; it has {steps}")
        return [which]


def _attempt(read, step):
    """(result of `read(step)`, None), or (None, its error in short)."""
    try:
        return read(step), None
    except Exception as error:  # a damaged folder can fail in any way
        return None, _in_short(error)


def _in_short(error):
    return " ".join(str(error).split())[:120] or type(error).__name__


def _first_problem(problems):
    """The first of the processes' problems, or None."""
    for index, problem in enumerate(problems):
        if problem is not None:
            return problem if len(problems) == 1 else f"process {index}: {problem}"
    return None


class _Manager(ocp.CheckpointManager):
    """Orbax's checkpoint manager, with two differences.

    It does not query preemption, which the training loop does with `distributed.preempted`: all
    callers share a sequence of queries, and Orbax would number them by steps. And it reports the
    error of a save in the background at once, whereas Orbax first waits up to 20 minutes for the
    other processes, which wait for this one in the same save.
    """

    failure: Exception | None = None

    def reached_preemption(self, step: int) -> bool:
        """See Orbax."""
        return False

    def _wait_for_checkpointers(self) -> None:
        try:
            super()._wait_for_checkpointers()
        except Exception as error:
            self.failure = error
            raise


def _manager(directory, policy):
    """Makes the Orbax manager that saves and removes checkpoints."""
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
    handlers = checkpoint_files.handlers()
    try:
        return _Manager(directory, options=options, item_handlers=handlers)
    except Exception as error:  # a damaged folder can fail in any way
        if lost_process.is_reason_of(error):
            raise
        raise ValueError(f"{directory} cannot be used: {_in_short(error)}") from error


@dataclasses.dataclass(frozen=True)
class _Keep:
    """An Orbax preservation policy: keeps the newest checkpoints and those with the lowest scores.

    Damaged ones do not count. They are kept until their step is saved again, or a later one is.
    """

    newest: int
    best: int
    scores: dict  # by step; infinite without a score
    damaged: set  # steps

    def should_preserve(self, checkpoints, *, context):
        """Whether to keep each checkpoint."""
        del context
        steps = [info.step for info in checkpoints]
        good = [step for step in steps if step not in self.damaged]
        kept = {*good[-self.newest :], *_rank(good, self.scores)[: self.best]}
        return [step in kept or step > max(good, default=0) for step in steps]


def _rank(steps, scores):
    finite = [step for step in steps if scores.get(step, math.inf) < math.inf]
    return sorted(finite, key=scores.get)


def parse_checkpoint_name(text: str) -> str | int:
    """Parses a value of --checkpoint: "latest", "best" or a step.

    Raises:
      ValueError: for other text.
    """
    if text in ("latest", "best"):
        return text
    if not text.isdecimal():
        raise ValueError(f"--checkpoint={text}: it must be latest, best or a step")
    return int(text)


def load_run(
    workdir: str | Path,
    which: str | int = "latest",
    *,
    join: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> tuple[build.Experiment, Snapshot]:
    """Loads a run for inference on all available devices.

    Args:
      workdir: the run directory.
      which: the checkpoint; see `Checkpoints.restore`.
      join: whether to join the other processes of a cluster, if this is one.
      changes: {"section.key": value} in its config; see `run_directory.load_config`.

    Returns:
      (experiment, `Snapshot`).

    Raises:
      ValueError: if there is no run, or no such checkpoint that can be read.
    """
    workdir = paths.parse(workdir, "workdir")
    config = run_directory.load_config(workdir, changes)
    if join:
        hosts.join(config)
    with processes.raise_together():
        experiment = build.build_for_inference(config)
    return experiment, load_snapshot(workdir, experiment, which)[0]


def load_snapshot(
    workdir: str | Path, experiment: build.Experiment, which: str | int = "latest"
) -> tuple[Snapshot, Any]:
    """Loads (`Snapshot`, data_state) from a checkpoint of the run in `workdir`; see `load_run`.

    Args:
      workdir: the run directory.
      experiment: from `build.build_for_inference`.
      which: the checkpoint; see `Checkpoints.restore`.
    """
    variables, averaged = experiment.abstract_variables(), experiment.loop.ema_decay > 0
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore_snapshot(variables, which, averaged=averaged)
    if restored is None:
        raise ValueError(f"{workdir} has no checkpoint yet: train it first")
    if broken := restored[0].nonfinite():
        raise ValueError(
            f"the checkpoint of step {restored[0].step} in {workdir} has NaN or infinity in "
            f"{len(broken)} array(s), first {broken[0]}: take another with --checkpoint=STEP"
        )
    return restored
