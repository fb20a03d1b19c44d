"""Saving and restoring a run with Orbax: the whole state and the position in the data."""

import dataclasses
import math
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from nvae_jax import build, distributed, run_directory
from nvae_jax.state import Snapshot

METRIC = "nelbo"  # of held-out images: the lower, the better the checkpoint

# Devices that hold the same array write a part of it each, from so many bytes on: every shape and
# part is a program to compile, hundreds of them at the first save of a run on eight devices.
_SMALLEST_PART = 2**22


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager: leaving it waits for saves
    that are still being written.

    Args:
      workdir: the run directory.
      keep: how many of the newest stay.
      keep_best: how many of those with the lowest `METRIC` stay besides.
      read_only: whether to make no folder and remove nothing.
    """

    def __init__(self, workdir, *, keep=2, keep_best=0, read_only=False):
        self._scores = {}  # by step
        newest = checkpoint_managers.LatestN(None if read_only else keep)
        best = _KeepBest(keep_best, self._scores)
        # Orbax's own read_only warns at every start; not creating and not removing is enough.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([newest, best]),
            create=not read_only,
        )
        directory = (Path(workdir) / "checkpoints").absolute()
        self._directory = directory
        self._manager = None
        if directory.is_dir() or not read_only:
            self._manager = ocp.CheckpointManager(
                directory, options=options, item_handlers=_handlers()
            )
            self._scores.update({step: self._stored_score(step) for step in self._all_steps()})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()

    def latest_step(self):
        """The newest saved step, or None."""
        return None if self._manager is None else self._manager.latest_step()

    def best_step(self):
        """The saved step with the lowest `METRIC`, or None where no step has one."""
        return next(iter(self._ranked()), None)

    def save(self, state, data_state, metrics=None):
        """Saves `state` and the data iterator's JSON-able state, in the background; `metrics`
        {name: number} are those of this state, where it has been evaluated."""
        step = int(state.step)
        if step == self.latest_step():
            return
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state.stored()),
            data=ocp.args.JsonSave(data_state),
            evaluation=ocp.args.JsonSave(metrics or {}),
        )
        self._scores[step] = _score(metrics)
        self._manager.save(step, args=args, force=True)

    def restore(self, abstract_state, which="latest"):
        """A checkpoint; where it cannot be read, the next one in the order of `which`.

        Args:
          abstract_state: the state's shapes, from `jax.eval_shape`.
          which: "latest", "best" (by `METRIC`), or a step, which nothing takes the place of.

        Returns:
          (state, data_state), or None where there is no checkpoint.

        Raises:
          ValueError: there are checkpoints, and none that is asked for, or none that can be read.
        """

        def read(step):
            stored, data_state = self._read(step, abstract_state.stored())
            return abstract_state.replace(**stored), data_state

        return self._first_readable(which, read)

    def restore_snapshot(self, abstract_variables, which="latest", *, averaged=False):
        """What inference needs of a checkpoint, and no more is read: no optimiser's moments.

        Args:
          abstract_variables: the model's, with their places.
          which: as in `restore`.
          averaged: whether training keeps a moving average, which then is what is read.

        Returns:
          (`Snapshot`, data_state), or None where there is no checkpoint.

        Raises:
          ValueError: as in `restore`.
        """

        def read(step):
            wanted = {"average": abstract_variables} if averaged else abstract_variables
            found, data_state = self._read(step, wanted)
            return Snapshot(step, found["average"] if averaged else found), data_state

        return self._first_readable(which, read)

    def _first_readable(self, which, read):
        failures = []
        for step in self._candidates(which):
            try:
                return read(step)
            except Exception as error:  # a torn file can fail in any way
                failures.append(f"step {step}: {str(error).strip().splitlines()[0][:200]}")
                logging.warning("checkpoint of %s cannot be read, trying older", failures[-1])
        if failures:
            raise ValueError(f"no checkpoint in {self._directory} can be read ({failures[0]})")
        return None

    def _all_steps(self):
        return [] if self._manager is None else sorted(self._manager.all_steps())

    def _stored_score(self, step):
        # Orbax has metrics of its own, but cannot open a folder in which they are torn.
        args = ocp.args.Composite(evaluation=ocp.args.JsonRestore())
        try:
            return _score(self._manager.restore(step, args=args)["evaluation"])
        except Exception:  # torn, or from before there were scores
            return math.inf

    def _ranked(self):
        """The saved steps that have a `METRIC`, the best first."""
        return _rank(self._all_steps(), self._scores)

    def _candidates(self, which):
        """Steps in the order in which they are tried."""
        steps = self._all_steps()
        if not steps or which == "latest":
            return steps[::-1]
        if which == "best":
            if not self._ranked():
                raise ValueError(
                    f"no checkpoint in {self._directory} was evaluated in training "
                    "(config.eval.every_steps): there is no best one"
                )
            return self._ranked()
        if which not in steps:
            there = ", ".join(map(str, steps))
            raise ValueError(f"{self._directory} has no checkpoint of step {which}; it has {there}")
        return [which]

    def _read(self, step, wanted):
        """({field: arrays} in the shapes and places of `wanted`, data_state) of a checkpoint, which
        may hold more fields."""
        restore = ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        args = ocp.args.Composite(state=restore, data=ocp.args.JsonRestore())
        found = self._manager.restore(step, args=args)
        if _shapes(found["state"]) != _shapes(wanted):
            raise ValueError("its arrays have other shapes than the config's model")
        return found["state"], found["data"]


def _shapes(tree):
    return jax.tree.map(lambda array: array.shape, tree)


def _handlers():
    """Of what a checkpoint has."""
    arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SMALLEST_PART)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "data": ocp.JsonCheckpointHandler(),
        "evaluation": ocp.JsonCheckpointHandler(),
    }


@dataclasses.dataclass(frozen=True)
class _KeepBest:
    """An Orbax preservation policy: keeps the `count` checkpoints with the lowest scores."""

    count: int
    scores: dict  # by step; infinite where there is none

    def should_preserve(self, checkpoints, *, context):
        """Of each checkpoint, whether it stays."""
        del context
        best = _rank([info.step for info in checkpoints], self.scores)[: self.count]
        return [info.step in best for info in checkpoints]


def _rank(steps, scores):
    finite = [step for step in steps if scores[step] < math.inf]
    return sorted(finite, key=scores.get)


def _score(metrics):
    """`METRIC`, or infinity where it is missing or not finite."""
    value = (metrics or {}).get(METRIC)
    return value if value is not None and math.isfinite(value) else math.inf


def parse_which(text):
    """What --checkpoint names: "latest", "best" or a step.

    Raises:
      ValueError: it is none of these.
    """
    if text in ("latest", "best"):
        return text
    if not text.isdecimal():
        raise ValueError(f"--checkpoint={text}: it must be latest, best or a step")
    return int(text)


def load_run(workdir, which="latest", *, join=False, changes=None):
    """The experiment, on the devices that there are, and what inference needs of a checkpoint of
    the run in `workdir`.

    Args:
      workdir: the run directory.
      which: checkpoint; see `Checkpoints.restore`.
      join: whether the processes of a cluster, if this is one, work on it together.
      changes: {"section.key": value} in its config; see `run_directory.load_config`.

    Returns:
      (experiment, `Snapshot`).

    Raises:
      ValueError: there is no run, or no such checkpoint that can be read.
    """
    config = run_directory.load_config(workdir, changes)
    if join:
        distributed.initialize(build.build_distributed(config))
    with distributed.together():
        experiment = build.build_for_inference(config)
    return experiment, load_snapshot(workdir, experiment, which)[0]


def load_snapshot(workdir, experiment, which="latest"):
    """(`Snapshot`, data_state) of a checkpoint of the run in `workdir`; see `load_run`.

    Args:
      experiment: from `build.build_for_inference`.
    """
    variables, averaged = experiment.abstract_variables(), experiment.loop.ema_decay > 0
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore_snapshot(variables, which, averaged=averaged)
    if restored is None:
        raise ValueError(f"{workdir} has no checkpoint yet: train it first")
    return restored
