"""Memory that a computation frees is reused without being cleared by the system, and is released on
request."""

import ctypes
import subprocess
import sys

import pytest

# The first calls can need new memory, so the median call counts.
PROGRAM = """
import resource
import statistics
import jax
from nvae_jax import allocator

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def own_memory():
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("RssAnon")))

if {keep}:
    allocator.keep_freed_memory()
add = jax.jit(lambda x: x + 1)
x = jax.numpy.ones(2**24)  # 64 MB: more than glibc keeps of itself
calls = []
for _ in range(32):
    before = page_faults()
    add(x).block_until_ready()
    calls.append(page_faults() - before)
x = None
before = own_memory()
allocator.release_freed_memory()
print(statistics.median_low(calls), before - own_memory())
"""


def measure(keep):
    program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    out = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    return map(int, out.split())


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_reused_until_it_is_released():
    page_faults, given_back = measure(keep=True)
    usual, _ = measure(keep=False)
    assert 20 * page_faults < usual
    assert given_back > 100_000  # of at least two arrays' 65,536 kB each
