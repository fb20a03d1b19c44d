"""Saving and restoring a run with Orbax: the whole state and the position in the data."""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager: leaving it waits for saves
    that are still being written."""

    def __init__(self, workdir, *, keep=2, read_only=False):
        # Orbax's own read_only warns at every start; not creating and not keeping is enough.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep, create=not read_only
        )
        directory = (Path(workdir) / "checkpoints").absolute()
        self._directory = directory
        self._manager = None
        if directory.is_dir() or not read_only:
            self._manager = ocp.CheckpointManager(directory, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._manager is not None:
            self._manager.wait_until_finished()
            self._manager.close()

    def latest_step(self):
        """The newest saved step, or None."""
        return None if self._manager is None else self._manager.latest_step()

    def save(self, state, data_state):
        """Saves `state` and the data iterator's JSON-able state, in the background."""
        step = int(state.step)
        if step == self.latest_step():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state)
        )
        self._manager.save(step, args=args, force=True)

    def restore(self, abstract_state):
        """The newest checkpoint that can be read.

        Args:
          abstract_state: the state's shapes, from `jax.eval_shape`.

        Returns:
          (state, data_state), or None where there is no checkpoint.

        Raises:
          ValueError: there are checkpoints, and none can be read.
        """
        steps = [] if self._manager is None else sorted(self._manager.all_steps(), reverse=True)
        failures = []
        for step in steps:
            try:
                return self._restore(step, abstract_state)
            except Exception as error:  # a torn file can fail in any way
                failures.append(f"step {step}: {str(error).strip().splitlines()[0][:200]}")
                logging.warning("checkpoint of %s cannot be read, trying older", failures[-1])
        if failures:
            raise ValueError(f"no checkpoint in {self._directory} can be read ({failures[0]})")
        return None

    def _restore(self, step, abstract_state):
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state), data=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=args)
        shapes = jax.tree.map(lambda a: a.shape, restored["state"])
        if shapes != jax.tree.map(lambda a: a.shape, abstract_state):
            raise ValueError("its arrays have other shapes than the config's model")
        return restored["state"], restored["data"]
