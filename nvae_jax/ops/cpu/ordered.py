"""Dense convolution for XLA's CPU backend, with gradients in the order of dimensions that it needs.

The backend has fast kernels for matrix products, and for convolutions with dimensions in the order
NHWC and HWIO. The gradients derived by JAX have other orders. Outside of loops the compiler
transposes them; in a loop (the scans over groups) it falls back to scalar code, which is 30 times
slower. So the gradients here have the right order.
"""

from functools import partial

import jax
from jax import lax

from nvae_jax.ops.portable import convolution


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, precision: lax.PrecisionLike) -> jax.Array:
    """`Ops.conv` for kernels larger than 1×1."""
    return convolution.conv(x, kernel, stride=stride, precision=precision)


# With jit, layers of equal shapes are traced and lowered only once.
@partial(jax.jit, static_argnums=(0, 1))
def _gradients(stride, precision, residuals, g):
    x, kernel = residuals
    conv = partial(
        lax.conv_general_dilated, dimension_numbers=convolution.ORDER, precision=precision
    )
    k = kernel.shape[0]
    low = (k - 1) // 2
    # The extent of g's pixels in x, whose size need not be a multiple of the stride.
    reach = [stride * (m - 1) + 1 for m in g.shape[1:3]]
    ends = list(zip(x.shape[1:3], reach, strict=True))
    dx = conv(
        g,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        [(k - 1 - low, n - r + low) for n, r in ends],
        lhs_dilation=(stride, stride),
    )
    # Channels and batch are exchanged, so that the sum is over the batch.
    dw = conv(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        [(low, k - 1 - low + r - n) for n, r in ends],
        rhs_dilation=(stride, stride),
    )
    return dx, dw.transpose(1, 2, 0, 3)


conv.defvjp(lambda x, kernel, *options: (conv(x, kernel, *options), (x, kernel)), _gradients)
