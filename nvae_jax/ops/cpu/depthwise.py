"""The linear maps of `portable.depthwise` with the C++ kernels, in float32."""

import jax
from jax.lax import PrecisionLike

from nvae_jax.ops.cpu import native
from nvae_jax.ops.portable.geometry import Geometry, upsampling


def correlate(
    x: jax.Array, w: jax.Array, geometry: Geometry, precision: PrecisionLike
) -> jax.Array:
    del precision
    shape = (x.shape[0], *geometry.out_size, x.shape[3])
    return _call("depthwise_correlate", shape, x, w, geometry)


def input_grad(
    g: jax.Array, w: jax.Array, geometry: Geometry, precision: PrecisionLike
) -> jax.Array:
    del precision
    shape = (g.shape[0], *geometry.size, g.shape[3])
    return _call("depthwise_input_grad", shape, g, w, geometry)


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: PrecisionLike
) -> jax.Array:
    del precision
    shape = (geometry.kernel_size,) * 2 + x.shape[3:]
    return _call("depthwise_kernel_grad", shape, x, g, geometry)


upsample, upsample_input_grad, upsample_kernel_grad = upsampling(correlate, input_grad, kernel_grad)


def _call(name, shape, a, b, geometry):
    return native.call(name, shape, a, b, stride=geometry.stride, low=geometry.low)
