"""The implementations with which the tests of an operation are run."""

import shutil

import pytest

from nvae_jax.ops.cpu import Cpu, Native
from nvae_jax.ops.gpu import Gpu
from nvae_jax.ops.portable import Portable

NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
PORTABLE = pytest.param(Portable(), id="portable")
CPU = pytest.param(Cpu(), id="cpu")
NATIVE = pytest.param(Native(), id="native", marks=NEEDS_COMPILER)
GPU = pytest.param(Gpu(interpret=True), id="gpu")
