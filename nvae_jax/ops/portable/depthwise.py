"""Depthwise convolution with and without upsampling, composed of six linear maps.

A platform can have its own implementation of the maps. Each is a linear map or its transpose, for a
kernel w (k, k, C), a stride s, `low` zeros in front, and as many zeros behind as the output size
requires:

  correlate:    y[i]  = sum_d x[s i + d - low] w[d]
  input_grad:   dx[n] = sum of y'[i] w[d] over all (i, d) with s i + d - low = n
  kernel_grad:  dw[d] = sum_i x[s i + d - low] y'[i]

and the same for an array whose pixels are repeated in 2 x 2 blocks: `upsample`,
`upsample_input_grad` and `upsample_kernel_grad`. The argument `maps` is a module with these
functions of (two arrays, geometry, precision), such as `library`.
"""

from functools import partial
from typing import Any

import jax
from jax.lax import PrecisionLike

from nvae_jax.ops.portable import library
from nvae_jax.ops.portable.geometry import conv_geometry, upsample_geometry


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    precision: PrecisionLike = None,
    maps: Any = library,
) -> jax.Array:
    """`Ops.depthwise_conv` with the given maps."""
    _check(x, kernel)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")
    geometry = conv_geometry(x.shape[1:3], kernel.shape[0], stride)
    return _apply(x, kernel[:, :, 0], _CONV, geometry, precision, maps)


def upsample_depthwise_conv(
    x: jax.Array, kernel: jax.Array, *, precision: PrecisionLike = None, maps: Any = library
) -> jax.Array:
    """`Ops.upsample_depthwise_conv` with the given maps, without computing the upsampled array.

    Repeating pixels is the transpose of summing over 2 x 2 blocks. Together with the convolution it
    is the transpose of a stride-2 correlation with k + 1 taps. An output then needs
    ((k + 1) / 2)^2 products instead of k^2 (9 instead of 25), also in the gradients.
    """
    _check(x, kernel)
    geometry = upsample_geometry(x.shape[1:3], kernel.shape[0])
    return _apply(x, kernel[:, :, 0], _UPSAMPLE, geometry, precision, maps)


def _check(x, kernel):
    k = kernel.shape[0]
    if x.ndim != 4 or kernel.shape != (k, k, 1, x.shape[-1]) or k % 2 == 0:
        raise ValueError(
            "expected x (B, H, W, C) and kernel (k, k, 1, C) with k odd, "
            f"got {x.shape} and {kernel.shape}"
        )


# The maps (forward, gradient for x, gradient for the kernel) of the two operations. Their arguments
# are (x, w), (g, w) and (x, g), followed by geometry and precision.
_CONV = ("correlate", "input_grad", "kernel_grad")
_UPSAMPLE = ("upsample", "upsample_input_grad", "upsample_kernel_grad")


# With jit, layers of equal shapes are traced and lowered only once.
@partial(jax.jit, static_argnames=("name", "geometry", "precision", "maps"))
def _run(name, a, b, geometry, precision, maps):
    return getattr(maps, name)(a, b, geometry, precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _apply(x, w, operation, geometry, precision, maps):
    return _run(operation[0], x, w, geometry, precision, maps)


def _apply_fwd(x, w, *options):
    return _apply(x, w, *options), (x, w)


def _apply_bwd(operation, geometry, precision, maps, residuals, g):
    x, w = residuals
    dx = _run(operation[1], g, w, geometry, precision, maps)
    dw = _run(operation[2], x, g, geometry, precision, maps)
    return dx, dw.astype(w.dtype)


_apply.defvjp(_apply_fwd, _apply_bwd)
