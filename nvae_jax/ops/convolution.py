"""Dense convolution, with its gradients written as each platform wants them.

XLA's CPU backend has fast kernels for matrix products and for convolutions whose dimensions come
in the order of NHWC and HWIO. The gradients that JAX derives have other orders. In straight code
the compiler mends that; in a loop (the scans over groups) it does not, and falls back to scalar
code that is 30 times slower. So on CPU they are put in order here. Accelerators recognise the
gradients as JAX derives them, and get those. On a single CPU device the kernels of
`nvae_jax.ops.native` do without any order, at nearly the rate of a matrix product.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from nvae_jax.ops import native
from nvae_jax.ops.by_platform import by_platform

_ORDER = ("NHWC", "HWIO", "NHWC")


def conv(x, kernel, *, stride=1, implementation=None, precision=None):
    """Cross-correlates with (k - 1) / 2 zeros on every side; sums are accumulated in float32.

    Args:
      x: (B, H, W, C), float32 or bfloat16.
      kernel: (k, k, C, O), k odd, dtype of x.
      stride: in both directions. The padding does not depend on it.
      implementation: "native" for `nvae_jax.ops.native` where x is float32, k > 1 and the stride
        at most 2. Otherwise, and for all other names, XLA's.
      precision: as in `lax.conv_general_dilated`; the native kernels have float32's.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), O), dtype of x.

    Raises:
      RuntimeError: "native" is asked for where it cannot be had.
    """
    if kernel.shape[0] > 1:
        by_native = implementation == "native" and x.dtype == jnp.float32 and stride <= 2
        return _conv(x, kernel, stride, by_native, precision)
    x = x[:, ::stride, ::stride]
    # Two-dimensional operands: for others XLA's CPU backend transposes, also in the gradients.
    y = lax.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=precision)
    return y.reshape(*x.shape[:-1], -1)


def _forward(x, kernel, *, stride, precision):
    pad = (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=_ORDER,
        precision=precision,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, stride, by_native, precision):
    if by_native:
        return _chosen_forward(x, kernel, stride, precision)
    return _forward(x, kernel, stride=stride, precision=precision)


def _conv_fwd(x, kernel, stride, by_native, precision):
    return _conv(x, kernel, stride, by_native, precision), (x, kernel)


def _conv_bwd(stride, by_native, precision, residuals, g):
    return _chosen_gradients(*residuals, g, stride, by_native, precision)


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.jit, static_argnums=(2, 3))
def _chosen_forward(x, kernel, stride, precision):
    return by_platform(
        x,
        kernel,
        cpu=partial(_native_forward, stride=stride),
        default=partial(_forward, stride=stride, precision=precision),
    )


@partial(jax.jit, static_argnums=(3, 4, 5))
def _chosen_gradients(x, kernel, g, stride, by_native, precision):
    options = {"stride": stride, "precision": precision}
    derived = partial(_derived_gradients, **options)
    if by_native:
        by_kernels = partial(_native_gradients, stride=stride)
        return by_platform(x, kernel, g, cpu=by_kernels, default=derived)
    ordered = partial(_ordered_gradients, **options)
    return lax.platform_dependent(x, kernel, g, cpu=ordered, default=derived)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _derived_gradients(x, kernel, g, *, stride, precision):
    _, pullback = jax.vjp(partial(_forward, stride=stride, precision=precision), x, kernel)
    return pullback(g)


def _ordered_gradients(x, kernel, g, *, stride, precision):
    conv = partial(lax.conv_general_dilated, dimension_numbers=_ORDER, precision=precision)
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


def _native_forward(x, kernel, *, stride):
    height, width = (-(-n // stride) for n in x.shape[1:3])
    shape = (x.shape[0], height, width, kernel.shape[3])
    low = (kernel.shape[0] - 1) // 2
    return native.call("conv_correlate", shape, x, kernel, stride=stride, low=low)


def _native_gradients(x, kernel, g, *, stride):
    options = {"stride": stride, "low": (kernel.shape[0] - 1) // 2}
    dx = native.call("conv_input_grad", x.shape, g, kernel, **options)
    return dx, native.call("conv_kernel_grad", kernel.shape, x, g, **options)
