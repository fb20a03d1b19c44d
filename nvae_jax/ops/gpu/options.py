"""What all kernels are compiled with."""

from jax.experimental.pallas import triton as plgpu


def options(interpret, warps=4):
    """Of `pallas_call`: `warps` of 32 threads a program, or, where `interpret`, no GPU at all."""
    return {
        "compiler_params": plgpu.CompilerParams(num_warps=warps, num_stages=2),
        "interpret": interpret,
    }
