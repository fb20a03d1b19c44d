"""Orbax's checkpoint manager: which checkpoints it keeps, and how it reports errors."""

import dataclasses
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from nvae_jax import checkpoint_files, lost_process, orbax_errors


class Manager(ocp.CheckpointManager):
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


def make_manager(directory: Path, policy: Any) -> Manager:
    """Makes the manager of the checkpoints in `directory`.

    Args:
      directory: the folder of all checkpoints.
      policy: the Orbax preservation policy, such as `Keep`.

    Raises:
      ValueError: if the folder cannot be used.
    """
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
    handlers = checkpoint_files.handlers()
    try:
        return Manager(directory, options=options, item_handlers=handlers)
    except Exception as error:  # a damaged folder can fail in any way
        if lost_process.is_reason_of(error):
            raise
        raise ValueError(f"{directory} cannot be used: {orbax_errors.in_short(error)}") from error


@dataclasses.dataclass(frozen=True)
class Keep:
    """An Orbax preservation policy: keeps the newest checkpoints and those with the lowest scores.

    Damaged ones do not count. They are kept until their step is saved again, or a later one is.
    """

    newest: int
    best: int
    scores: dict  # by step; infinite without a score
    damaged: set  # steps

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Whether to keep each checkpoint."""
        del context
        steps = [info.step for info in checkpoints]
        good = [step for step in steps if step not in self.damaged]
        kept = {*good[-self.newest :], *checkpoint_files.rank(good, self.scores)[: self.best]}
        return [step in kept or step > max(good, default=0) for step in steps]
