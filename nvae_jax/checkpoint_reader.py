"""Reads the checkpoints of a run, and falls back on another one if a checkpoint is damaged."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from nvae_jax import checkpoint_files, orbax_errors, orbax_s3, paths, processes, run_directory
from nvae_jax.state import Snapshot, State
from nvae_jax.trees import by_name

orbax_errors.silence()


class CheckpointReader:
    """Reads the checkpoints of one run directory; it makes no folder and removes nothing.

    Args:
      workdir: the run directory.
    """

    def __init__(self, workdir: str | Path):
        self._directory = (paths.parse(workdir) / run_directory.CHECKPOINTS).absolute()
        if str(self._directory).startswith("s3://"):
            orbax_s3.teach()
        steps = checkpoint_files.steps(self._directory)
        self._scores = {s: checkpoint_files.read_score(self._directory, s) for s in steps}
        self._damaged = set()  # steps whose checkpoint could not be read

    def latest_step(self) -> int | None:
        """The newest saved step, or None. Checkpoints that could not be read do not count."""
        return max(self._steps() - self._damaged, default=None)

    def best_step(self) -> int | None:
        """The saved step with the lowest score, or None if no step has a score."""
        return next(iter(checkpoint_files.rank(self._steps() - self._damaged, self._scores)), None)

    def is_scored(self, step: int) -> bool:
        """Whether the saved `step` has a score."""
        return self._scores.get(step, math.inf) < math.inf

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
        return set(checkpoint_files.steps(self._directory))

    def _candidates(self, which):
        """The steps to try, in order; the same in all processes."""
        scores = {}
        for scores_of_process in processes.all_gather(list(self._scores.items())):
            scores.update(scores_of_process)
        if not scores or which == "latest":
            return sorted(scores, reverse=True)
        if which == "best":
            best_first = checkpoint_files.rank(scores, scores)
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
        return None, orbax_errors.in_short(error)


def _first_problem(problems):
    """The first of the processes' problems, or None."""
    for index, problem in enumerate(problems):
        if problem is not None:
            return problem if len(problems) == 1 else f"process {index}: {problem}"
    return None


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
