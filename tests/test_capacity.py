"""States that a machine cannot hold are refused by computing their size."""

import pytest

from nvae_jax import capacity


def test_a_state_that_no_device_holds_is_refused(tiny, monkeypatch):
    state = tiny[0].abstract_state()
    capacity.check_state(state)
    monkeypatch.setattr(capacity, "_device_memory", lambda devices: 10**5)
    with pytest.raises(ValueError, match="state alone needs 0.. GB of each device, which has 0.0:"):
        capacity.check_state(state)
