"""The C++ kernels of `nvae_jax.ops.native`, for float32; other dtypes get `shifted`."""

import jax.numpy as jnp

from nvae_jax.ops import native
from nvae_jax.ops.depthwise import shifted
from nvae_jax.ops.depthwise.geometry import upsampling


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


def _call(name, shape, a, b, geometry):
    b = b.astype(jnp.float32)
    return native.call(name, shape, a, b, stride=geometry.stride, low=geometry.low)
