"""Memory that a computation frees and asks for again is not cleared by the system again."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import jax
from nvae_jax import allocator

if {keep}:
    allocator.keep_freed_memory()
add = jax.jit(lambda x: x + 1)
x = jax.numpy.ones(2**24)  # 64 MB
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    add(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep):
    program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_kept():
    assert 20 * page_faults(True) < page_faults(False)
