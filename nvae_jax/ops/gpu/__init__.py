"""Kernels for a single NVIDIA GPU, in Pallas by its Triton lowering.

Written for what a step on a GPU is bound by: passes over memory, and the number of kernels.
"""

from jax.experimental.pallas import triton as plgpu


def options(interpret, warps=4):
    """Of `pallas_call`: `warps` of 32 threads a program, or, where `interpret`, no GPU at all."""
    return {
        "compiler_params": plgpu.CompilerParams(num_warps=warps, num_stages=2),
        "interpret": interpret,
    }
