"""Dense convolution for XLA's CPU backend, with the gradients written as that wants them.

It has fast kernels for matrix products and for convolutions whose dimensions come in the order of
NHWC and HWIO. The gradients that JAX derives have other orders. In straight code the compiler mends
that; in a loop (the scans over groups) it does not, and falls back to scalar code that is 30 times
slower. So they are put in order here.
"""

from functools import partial

import jax
from jax import lax

from nvae_jax.ops.portable import convolution


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, precision: lax.PrecisionLike) -> jax.Array:
    """`Ops.conv` for kernels of more than one tap."""
    return convolution.conv(x, kernel, stride=stride, precision=precision)


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.jit, static_argnums=(0, 1))
def _gradients(stride, precision, residuals, g):
    x, kernel = residuals
    conv = partial(
        lax.conv_general_dilated, dimension_numbers=convolution.ORDER, precision=precision
    )
    k = kernel.shape[0]
    low = (k - 1) // 2
    # How far g's pixels reach in x, whose size need not be a multiple of the stride.
    reach = [stride * (m - 1) + 1 for m in g.shape[1:3]]
    ends = list(zip(x.shape[1:3], reach, strict=True))
    dx = conv(
        g,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        [(k - 1 - low, n - r + low) for n, r in ends],
        lhs_dilation=(stride, stride),
    )
    # Channels take the place of the batch, which is summed over.
    dw = conv(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        [(low, k - 1 - low + r - n) for n, r in ends],
        rhs_dilation=(stride, stride),
    )
    return dx, dw.transpose(1, 2, 0, 3)


conv.defvjp(lambda x, kernel, *options: (conv(x, kernel, *options), (x, kernel)), _gradients)
