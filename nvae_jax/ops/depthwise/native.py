"""The C++ kernels of `nvae_jax.ops.native`, for float32; other dtypes get `shifted`."""

import jax.numpy as jnp

from nvae_jax.ops import native
from nvae_jax.ops.depthwise import shifted
from nvae_jax.ops.depthwise.geometry import block_sums, convolving, doubling, upsampling


def correlate(x, w, geometry, precision):
    if x.dtype != jnp.float32:
        return shifted.correlate(x, w, geometry, precision)
    return _call(
        "depthwise_correlate", (x.shape[0], *geometry.out_size, x.shape[3]), x, w, geometry
    )


def input_grad(g, w, geometry, precision):
    if g.dtype != jnp.float32:
        return shifted.input_grad(g, w, geometry, precision)
    return _call("depthwise_input_grad", (g.shape[0], *geometry.size, g.shape[3]), g, w, geometry)


def kernel_grad(x, g, geometry, precision):
    if x.dtype != jnp.float32:
        return shifted.kernel_grad(x, g, geometry, precision)
    return _call("depthwise_kernel_grad", (geometry.kernel_size,) * 2 + x.shape[3:], x, g, geometry)


upsample, upsample_input_grad, upsample_kernel_grad = upsampling(correlate, input_grad, kernel_grad)


def activated(x, w, before, after, stride):
    """A convolution between activations: see `activated.activated_depthwise_conv`."""
    geometry = convolving(x.shape[1:3], w.shape[0], stride)
    shape = (x.shape[0], *geometry.out_size, x.shape[3])
    return _call("depthwise_activated_correlate", shape, x, w, geometry, *before, *after)


def activated_upsample(x, w, before, after):
    """The same of x repeated twice."""
    geometry, w = doubling(x.shape[1:3], w.shape[0]), block_sums(w)
    shape = (x.shape[0], *geometry.size, x.shape[3])
    return _call("depthwise_activated_input_grad", shape, x, w, geometry, *before, *after)


def _call(name, shape, a, b, geometry, *vectors):
    b = b.astype(jnp.float32)
    return native.call(name, shape, a, b, *vectors, stride=geometry.stride, low=geometry.low)
