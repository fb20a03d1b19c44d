"""What all Pallas kernels share."""

import sys
from functools import partial

import jax
import jax.numpy as jnp

from nvae_jax.ops.gpu import columns


class Recorder:
    """Among `sys.meta_path`: writes down which modules are looked for."""

    def __init__(self):
        self.names = set()

    def find_spec(self, name, path=None, target=None):
        self.names.add(name)


def test_lowering_a_second_kernel_imports_nothing(monkeypatch):
    sums = partial(columns.column_sums, lambda tiles, _: (tiles[0], tiles[0]))
    program = jax.jit(lambda x: sums([x], []))

    def lower(rows):
        x = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
        program.trace(x).lower(lowering_platforms=("cuda",))

    lower(16)  # what is imported late, and once
    recorder = Recorder()
    monkeypatch.setattr(sys, "meta_path", [recorder, *sys.meta_path])
    lower(32)
    assert not recorder.names
