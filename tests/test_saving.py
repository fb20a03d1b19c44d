import numpy as np
import pytest

from nvae_jax.checkpoint import SaveError
from nvae_jax.saving import CheckpointSaver
from nvae_jax.state import State


class Disk:
    """Simulated checkpoints, of which the first `failures` saves fail in the background."""

    def __init__(self, failures=0):
        self.failures, self.steps, self.writing = failures, [], None

    def save(self, state, data_state, metrics):
        self.wait()
        self.writing = state

    def check(self):
        self.wait()

    def wait(self):
        step, self.writing = self.writing and int(self.writing.step), None
        if step is not None and self.failures:
            self.failures -= 1
            raise SaveError(f"run/checkpoints/{step}: cannot be written (No space left on device)")
        self.steps += [] if step is None else [step]

    settle = wait

    def latest_step(self):
        return max(self.steps, default=None)

    written_step = latest_step


def saving_on(disk):
    saving = CheckpointSaver(disk)
    nothing = dict.fromkeys(("params", "batch_stats", "opt_state", "spectral", "key"))

    def reach(step, skipped=0):
        state = State(step=np.int32(step), nonfinite_steps=np.int32(skipped), **nothing)
        saving.update(state, {"step": step})

    return saving, reach


def test_a_failed_save_is_reported_and_retried_once(capsys):
    saving, reach = saving_on(disk := Disk(failures=1))
    reach(3)
    saving.save()
    reach(4)
    saving.check()
    assert disk.steps == [4]
    assert capsys.readouterr().out == (
        "run/checkpoints/3: cannot be written (No space left on device): retrying once\n"
    )


def test_a_second_failure_ends_the_run_and_says_what_is_saved():
    saving, reach = saving_on(disk := Disk())
    reach(3)
    saving.save(wait=True)
    disk.failures = 2
    with pytest.raises(SaveError, match="checkpoints/6") as caught, saving.saving_on_error(list):
        reach(6)
        saving.save(wait=True)
    assert caught.value.__notes__ == ["the newest checkpoint is step 3"]
    assert disk.failures == 0  # there is no third attempt


def test_the_state_is_saved_before_an_error_is_raised():
    saving, reach = saving_on(Disk())
    reported = []
    with pytest.raises(OSError) as caught, saving.saving_on_error(lambda: reported.append("row")):
        reach(5)
        raise OSError("a damaged picture")
    assert reported == ["row"]
    assert caught.value.__notes__ == ["the newest checkpoint is step 5"]


def test_an_error_while_saving_does_not_hide_the_first_error():
    saving, reach = saving_on(Disk(failures=9))
    with pytest.raises(OSError, match="a damaged picture") as caught, saving.saving_on_error(list):
        reach(5)
        raise OSError("a damaged picture")
    assert caught.value.__notes__ == ["nothing is saved"]


def test_while_updates_are_skipped_the_state_before_them_is_saved():
    saving, reach = saving_on(disk := Disk())
    reach(5, skipped=5)  # all updates were skipped
    saving.save(wait=True)
    assert disk.steps == [] and saving.latest_step() is None
    reach(7, skipped=2)
    saving.save()
    assert int(disk.writing.step) == 5 and disk.writing.is_good()


def test_in_a_cluster_the_first_failure_ends_the_run(monkeypatch):
    saving, reach = saving_on(Disk(failures=1))
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(SaveError), saving.saving_on_error(list):
        reach(3)
        saving.save(wait=True)
