"""Lowering without a GPU."""

import pytest

from nvae_jax.planning.compiled import lowering_for


@pytest.fixture(autouse=True)
def h100():
    """The GPU that kernels are lowered for."""
    with lowering_for("NVIDIA H100 80GB HBM3", "gpu"):
        yield
