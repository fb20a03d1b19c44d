"""Dense convolution with the C++ kernels, almost as fast as a matrix product."""

from functools import partial
from typing import Any

import jax

from nvae_jax.ops.cpu import native


@partial(jax.custom_vjp, nondiff_argnums=(2,))
# With jit, layers of equal shapes are traced and lowered only once.
@partial(jax.jit, static_argnums=2)
def conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`Ops.conv` in float32, for kernels larger than 1×1 and strides 1 and 2."""
    height, width = (-(-n // stride) for n in x.shape[1:3])
    shape = (x.shape[0], height, width, kernel.shape[3])
    return native.call("conv_correlate", shape, x, kernel, **_options(kernel, stride))


@partial(jax.jit, static_argnums=0)
def _gradients(stride, residuals, g):
    x, kernel = residuals
    options = _options(kernel, stride)
    dx = native.call("conv_input_grad", x.shape, g, kernel, **options)
    return dx, native.call("conv_kernel_grad", kernel.shape, x, g, **options)


def _options(kernel, stride) -> dict[str, Any]:
    return {"stride": stride, "low": (kernel.shape[0] - 1) // 2}


conv.defvjp(lambda x, kernel, stride: (conv(x, kernel, stride), (x, kernel)), _gradients)
