"""Options of the compiler, by platform; for `jax.jit(..., compiler_options=options(platform))`."""

import os
from functools import cache
from typing import Any

import jax

# XLA's CPU backend hands matrix products, reductions and single convolutions to a library. For
# convolutions its own kernels are up to three times faster (gradients at 16x16 and 32x32).
CPU = {
    "xla_cpu_experimental_ynn_fusion_type": ",".join(
        f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "INDIVIDUAL_DOT", "REDUCE")
    ),
    # Where there are such registers; depthwise convolutions run a fifth faster with them.
    "xla_cpu_prefer_vector_width": 512,
    # As fast as with LLVM's level 3, and a tenth less to wait for.
    "xla_backend_optimization_level": 1,
}

# Not by way of MLIR. Without the C++ kernels a training step is thousands of small loops: emitted
# directly they run as fast, and take a seventh less time to compile.
_DIRECTLY = {"xla_cpu_use_fusion_emitters": False}
CPU_PORTABLE = {**CPU, **_DIRECTLY}
CPU_RUNS_ONCE = {"xla_backend_optimization_level": 0, **_DIRECTLY}

# What accelerators want beside their compilers' defaults: nothing that was seen to pay so far.
# Each entry says what it was seen to do, measured by benchmarks/accelerator.py --variant=….
GPU, GPU_RUNS_ONCE = {}, {}
TPU = {}


@cache
def options(
    platform: str, *, runs_once: bool = False, unrolled: bool = False
) -> dict[str, Any] | None:
    """The options of a platform ("cpu", "gpu", "tpu") that this version of XLA knows; None where
    that leaves none. What XLA_FLAGS sets stays as it is set there.

    Args:
      platform: where the program runs.
      runs_once: whether its compilation takes longer than its run.
      unrolled: whether it is thousands of small loops, as a training step without C++ kernels is.
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
