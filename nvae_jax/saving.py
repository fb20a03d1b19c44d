"""When a run is saved, what becomes of saves that fail, and what is said of either."""

import contextlib

import jax

from nvae_jax import reporting
from nvae_jax.checkpoint import SaveError
from nvae_jax.interrupt import Interrupted


class Saving:
    """Saves where a run has come to.

    A save that fails is said as soon as that is known, and tried once more with the state of then;
    failing again, it ends the run. In a cluster the first failure ends it: the other processes,
    which a save needs, do not know of it.

    Args:
      checkpoints: of the run.
    """

    def __init__(self, checkpoints):
        self._checkpoints, self._reached, self._scores = checkpoints, None, None

    def reached(self, state, data_state):
        """Takes the state after an update, and the position in the data."""
        self._reached, self._scores = (state, data_state), None

    def scored(self, scores):
        """Takes what the evaluation of the state that is `reached` found."""
        self._scores = scores

    def save(self, wait=False):
        """Saves the state that is reached, in the background or at once; among updates that are
        skipped as not finite the one before them, if there is one.

        Raises:
          SaveError: this failed twice.
        """
        try:
            self._write(wait)
        except SaveError as error:
            self._try_again(error)

    def check(self):
        """Looks after the save in the background, without waiting for it.

        Raises:
          SaveError: it failed, and so did another.
        """
        try:
            self._checkpoints.check()
        except SaveError as error:
            self._try_again(error)

    def rescue(self):
        """Saves if that can be, and raises nothing: for a run that ends with another error."""
        with contextlib.suppress(Exception):  # such as for an update that failed halfway
            self.save(wait=True)

    def _write(self, wait):
        if self._reached is None:
            return
        state, data_state = self._reached
        state, scores = state.before_skipped(), self._scores if state.is_good() else None
        if step := int(state.step):
            self._checkpoints.save(state, {**data_state, "step": step}, scores)
        if wait:
            self._checkpoints.wait()

    def _try_again(self, error):
        if jax.process_count() > 1:
            raise error
        reporting.say(f"{error}: trying once more")
        self._write(wait=True)

    def newest(self):
        """The newest step that is saved, and not only being written; None where there is none."""
        with contextlib.suppress(Exception):  # not to hide the error that this is asked for
            self._checkpoints.wait()
        return self._checkpoints.latest_step()

    def describe(self):
        """What is saved, in words."""
        newest = self.newest()
        return "nothing is saved" if newest is None else f"the newest checkpoint is step {newest}"

    @contextlib.contextmanager
    def at_errors(self, report):
        """A context that an error leaves with the state saved where that can be, and with a note
        that says which step is. Ahead of that it calls `report`."""
        try:
            yield
        except (Interrupted, FloatingPointError):  # which say themselves what is saved
            raise
        except Exception as error:
            # A save needs all processes, and the others are in the middle of a step.
            if jax.process_count() == 1 and not isinstance(error, SaveError):
                with contextlib.suppress(Exception):
                    report()
                self.rescue()
            error.add_note(self.describe())
            raise
