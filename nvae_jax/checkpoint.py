"""Saving and restoring a run with Orbax: the whole state and the position in the data."""

import dataclasses
import math
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from nvae_jax import build, distributed, run_directory

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
        failures = []
        for step in self._candidates(which):
            try:
                return self._restore(step, abstract_state)
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

    def _restore(self, step, abstract_state):
        stored = abstract_state.stored()
        where = ocp.checkpoint_utils.construct_restore_args(stored)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(stored, restore_args=where), data=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=args)
        state = abstract_state.replace(**restored["state"])
        shapes = jax.tree.map(lambda a: a.shape, state)
        if shapes != jax.tree.map(lambda a: a.shape, abstract_state):
            raise ValueError("its arrays have other shapes than the config's model")
        return state, restored["data"]


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


def load_run(workdir, which="latest", *, join=False):
    """The experiment and a state of the run in `workdir`.

    Args:
      workdir: the run directory.
      which: checkpoint; see `Checkpoints.restore`.
      join: whether the processes of a cluster, if this is one, work on it together.

    Raises:
      ValueError: there is no run, or no such checkpoint that can be read.
    """
    config = run_directory.load_config(workdir)
    if join:
        distributed.initialize(build.build_distributed(config))
    with distributed.together():
        experiment = build.build(config)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.restore(experiment.abstract_state(), which)
    if restored is None:
        raise ValueError(f"{workdir} has no checkpoint yet: train it first")
    return experiment, restored[0]
