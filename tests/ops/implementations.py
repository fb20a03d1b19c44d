"""What the tests of an operation are run with."""

import shutil

import pytest

XLA = pytest.param(None, id="xla")
NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
NATIVE = pytest.param("native", marks=NEEDS_COMPILER)
