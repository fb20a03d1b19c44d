"""Compiler options by platform, for `jax.jit(..., compiler_options=options(platform))`."""

import os
from functools import cache
from typing import Any

import jax

# XLA's CPU backend calls a library for matrix products, reductions and single convolutions. For
# convolutions XLA's own kernels are up to three times faster (gradients at 16x16 and 32x32).
CPU = {
    "xla_cpu_experimental_ynn_fusion_type": ",".join(
        f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "INDIVIDUAL_DOT", "REDUCE")
    ),
    # On processors with such registers depthwise convolutions run a fifth faster.
    "xla_cpu_prefer_vector_width": 512,
    # Programs are as fast as with LLVM's level 3, and compile in a tenth less time.
    "xla_backend_optimization_level": 1,
}

# Without the C++ kernels a training step consists of thousands of small loops. Emitted directly
# instead of via MLIR, they run as fast and compile in a seventh less time.
_WITHOUT_MLIR = {"xla_cpu_use_fusion_emitters": False}
CPU_PORTABLE = {**CPU, **_WITHOUT_MLIR}
CPU_RUNS_ONCE = {"xla_backend_optimization_level": 0, **_WITHOUT_MLIR}

# For accelerators no option has been measured to help so far. An entry must say what it was
# measured to gain (benchmarks/accelerator.py --variant=…).
GPU, GPU_RUNS_ONCE = {}, {}
TPU = {}


@cache
def options(
    platform: str, *, runs_once: bool = False, unrolled: bool = False
) -> dict[str, Any] | None:
    """Returns the compiler options of a platform that this version of XLA supports, or None.

    Options that XLA_FLAGS sets are left out, so that XLA_FLAGS takes precedence.

    Args:
      platform: "cpu", "gpu" or "tpu".
      runs_once: whether compiling the program takes longer than running it.
      unrolled: whether it consists of thousands of small loops, like a training step without C++
        kernels.
    """
    usual, if_unrolled, if_once = {
        "cpu": (CPU, CPU_PORTABLE, CPU_RUNS_ONCE),
        "gpu": (GPU, GPU, GPU_RUNS_ONCE),
        "tpu": (TPU, TPU, TPU),
    }[platform]
    flags = os.environ.get("XLA_FLAGS", "")
    chosen = if_once if runs_once else if_unrolled if unrolled else usual
    chosen = {name: value for name, value in chosen.items() if f"--{name}=" not in flags}
    if not _known(chosen):
        chosen = {name: value for name, value in chosen.items() if _known({name: value})}
    return chosen or None


def _known(chosen):
    try:
        jax.jit(lambda x: x, compiler_options=chosen).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
