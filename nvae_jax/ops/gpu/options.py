"""Options that all kernels are compiled with."""

import sys
from typing import Any

from jax._src.lib.triton import dialect  # pyright: ignore[reportPrivateImportUsage]
from jax.experimental.pallas import triton as plgpu

# For every Triton operation, jaxlib tries to import a module of this name, which does not exist.
# That takes nearly half of the time of lowering a kernel.
sys.modules.setdefault("jaxlib.mlir.dialects.tt", dialect)

# Of kernels that copy many small arrays at once.
MAX_RESULTS = 128  # each is an argument or two, of which a kernel has a few hundred at most
BLOCK = 1024  # numbers of an array that a program copies


def options(interpret: bool, warps: int = 4, stages: int = 2) -> dict[str, Any]:
    """Returns the options of `pallas_call`: `warps` warps of 32 threads per program, and loops in
    `stages` pipeline stages; with `interpret`, the kernel runs without a GPU."""
    return {
        "compiler_params": plgpu.CompilerParams(num_warps=warps, num_stages=stages),
        "interpret": interpret,
    }
