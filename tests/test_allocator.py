"""Memory that a computation frees and asks for again is not cleared by the system again."""

import ctypes
import subprocess
import sys

import pytest

# The first calls find holes of other sizes, and may ask for more: the usual call counts.
PROGRAM = """
import resource
import statistics
import jax
from nvae_jax import allocator

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if {keep}:
    allocator.keep_freed_memory()
add = jax.jit(lambda x: x + 1)
x = jax.numpy.ones(2**24)  # 64 MB: more than glibc keeps of itself
calls = []
for _ in range(32):
    before = page_faults()
    add(x).block_until_ready()
    calls.append(page_faults() - before)
print(statistics.median_low(calls))
"""


def page_faults(keep):
    program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_kept():
    assert 20 * page_faults(keep=True) < page_faults(keep=False)
