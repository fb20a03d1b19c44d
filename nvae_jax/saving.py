"""When a run saves its state, and what happens when saving fails."""

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

    A failed save is reported as soon as it is known and tried once more, with the state that is the
    latest then; a second failure ends the run. In a cluster the first failure ends it: saving needs
    the other processes, which do not know of the failure.

    Args:
      checkpoints: of the run.

    Attributes:
      before_save: is called before anything is saved.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints, self._latest, self._scores = checkpoints, None, None
        self.before_save: Callable[[], Any] = lambda: None

    def update(self, state: State, data_state: Any) -> None:
        """Sets the state to save, after an update, and the position in the data."""
        self._latest, self._scores = (state, data_state), None

    def set_scores(self, scores: Mapping[str, float] | None) -> None:
        """Sets the evaluation metrics of the latest state."""
        self._scores = scores

    def save(self, wait: bool = False) -> None:
        """Saves the latest state, in the background unless `wait`. While updates are skipped as not
        finite, saves the state before the first of them, if there is one.

        Raises:
          SaveError: this failed twice.
        """
        try:
            self._write(wait)
        except SaveError as error:
            self._try_again(error)

    def check(self) -> None:
        """Reports a save in the background that has failed, without waiting for one.

        Raises:
          SaveError: it failed, and so did another.
        """
        try:
            self._checkpoints.check()
        except SaveError as error:
            self._try_again(error)

    def try_to_save(self) -> None:
        """Saves, ignoring errors: for a run that ends with another error."""
        with contextlib.suppress(Exception):  # such as for an update that failed halfway
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

    def _try_again(self, error):
        if jax.process_count() > 1:
            raise error
        reporting.log(f"{error}: trying once more")
        self._write(wait=True)

    def latest_step(self) -> int | None:
        """The newest step that is completely saved, or None."""
        with contextlib.suppress(Exception):  # not to hide the error that this is asked for
            self._checkpoints.wait()
        return self._checkpoints.latest_step()

    def describe(self, *, wait: bool = True) -> str:
        """One phrase that says what is saved, for messages; what is being saved counts if we may
        `wait` for it."""
        newest = self.latest_step() if wait else self._checkpoints.written_step()
        return "nothing is saved" if newest is None else f"the newest checkpoint is step {newest}"

    @contextlib.contextmanager
    def saving_on_error(self, report: Callable[[], Any]) -> Iterator[None]:
        """A context in which an error saves the latest state, if possible, and gets a note that
        says which step is saved. Before saving it calls `report`."""
        try:
            yield
        except (Interrupted, FloatingPointError):  # which say themselves what is saved
            raise
        except Exception as error:
            alone = jax.process_count() == 1
            if alone and not isinstance(error, SaveError):
                with contextlib.suppress(Exception):
                    report()
                self.try_to_save()
            # A new save would need all processes, and the others are in the middle of a step.
            elif not alone and not lost_process.is_reason_of(error):
                self._checkpoints.settle()
            error.add_note(self.describe(wait=alone))
            raise
