"""Saves a run's state, and retries or reports a save that failed."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from nvae_jax import lost_process, reporting
from nvae_jax.checkpoint import Checkpoints, SaveError
from nvae_jax.interrupt import Interrupted
from nvae_jax.state import State


class CheckpointSaver:
    """Saves the latest state of a run.

    A failed save is reported as soon as it is noticed and retried once, with the state that is then
    the latest. A second failure ends the run. In a cluster the first failure ends it, because a
    retry needs the other processes, which do not know of the failure.

    Args:
      checkpoints: the run's `Checkpoints`.

    Attributes:
      before_save: function that is called before each save.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints, self._latest, self._scores = checkpoints, None, None
        self.before_save: Callable[[], Any] = lambda: None

    def update(self, state: State, data_state: Any) -> None:
        """Sets the state to save, with that of the data iterator; called after each update."""
        self._latest, self._scores = (state, data_state), None

    def set_scores(self, scores: Mapping[str, float] | None) -> None:
        """Sets the evaluation metrics of the latest state."""
        self._scores = scores

    def save(self, wait: bool = False) -> None:
        """Saves the latest state, in the background unless `wait` is set.

        While updates are skipped because they are not finite, saves the state before the first
        skipped one.

        Raises:
          SaveError: if the save and its retry failed.
        """
        try:
            self._write(wait)
        except SaveError as error:
            self._retry(error)

    def check(self) -> None:
        """Retries a background save if it has failed; does not wait for one in progress.

        Raises:
          SaveError: if the retry failed too.
        """
        try:
            self._checkpoints.check()
        except SaveError as error:
            self._retry(error)

    def try_to_save(self) -> None:
        """Saves and ignores errors; for a run that is ending with another error."""
        with contextlib.suppress(Exception):  # such as of an update that failed halfway
            self.save(wait=True)

    def _write(self, wait):
        if self._latest is None:
            return
        state, data_state = self._latest
        state, scores = state.before_skipped(), self._scores if state.is_good() else None
        if step := int(state.step):
            self.before_save()
            self._checkpoints.save(state, {**data_state, "step": step}, scores)
        if wait:
            self._checkpoints.wait()

    def _retry(self, error):
        if jax.process_count() > 1:
            raise error
        reporting.log(f"{error}: retrying once")
        self._write(wait=True)

    def latest_step(self) -> int | None:
        """The newest step that is completely saved, or None; waits for a save in progress."""
        with contextlib.suppress(Exception):  # callers are reporting another error
            self._checkpoints.wait()
        return self._checkpoints.latest_step()

    def describe(self, *, wait: bool = True) -> str:
        """Describes the newest checkpoint in a phrase for messages. With `wait`, it waits for a
        save in progress."""
        newest = self.latest_step() if wait else self._checkpoints.written_step()
        return "nothing is saved" if newest is None else f"the newest checkpoint is step {newest}"

    @contextlib.contextmanager
    def saving_on_error(self, report: Callable[[], Any]) -> Iterator[None]:
        """A context that saves the latest state if an error leaves it.

        The error gets a note that says which step is saved. `report` is called before saving.
        """
        try:
            yield
        except (Interrupted, FloatingPointError):  # their messages say what is saved
            raise
        except Exception as error:
            alone = jax.process_count() == 1
            if alone and not isinstance(error, SaveError):
                with contextlib.suppress(Exception):
                    report()
                self.try_to_save()
            # A new save needs all processes, but the others are in the middle of a step.
            elif not alone and not lost_process.is_reason_of(error):
                self._checkpoints.settle()
            error.add_note(self.describe(wait=alone))
            raise
