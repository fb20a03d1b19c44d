"""What all kernels are compiled with."""

from typing import Any

from jax.experimental.pallas import triton as plgpu


def options(interpret: bool, warps: int = 4) -> dict[str, Any]:
    """For `pallas_call`: `warps` of 32 threads a program, or, where `interpret`, no GPU at all."""
    return {
        "compiler_params": plgpu.CompilerParams(num_warps=warps, num_stages=2),
        "interpret": interpret,
    }
