"""The body of an inverted residual cell with fixed statistics as one C++ kernel, in float32.

As separate operations, its hidden activations, with six times as many channels, would be written to
memory and read again at every step. The kernel applies all steps to one block of channels of an
image after the other, which stays in the cache.
"""

from functools import partial
from typing import Any

import jax
from jax.lax import PrecisionLike

from nvae_jax.ops.cpu import native
from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import inverted_residual as portable
from nvae_jax.ops.portable.geometry import block_sums, conv_geometry, upsample_geometry

# A task of the kernel consists of whole images. Larger images do not fit a core's cache, and fewer
# tasks of at least so many pixels are not worth it.
_MAX_PIXELS, _TASK_PIXELS, _MIN_TASKS = 64 * 64, 64, 8


def supports(x: jax.Array, *, stride: int, upsample: bool) -> bool:
    """Whether images x (B, H, W, C) are small enough for the cache, and many enough for threads."""
    batch, height, width, _ = x.shape
    pixels = height * width
    tasks = batch / max(1, _TASK_PIXELS // pixels)
    fits = pixels * (4 if upsample else 1) <= _MAX_PIXELS and tasks >= _MIN_TASKS
    return stride == 1 and fits


# With jit, layers of equal shapes are traced and lowered only once.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
@partial(jax.jit, static_argnums=(0, 1, 2))
def inverted_residual(
    ops: Ops,
    upsample: bool,
    precision: PrecisionLike,
    x: jax.Array,
    kernels: tuple[jax.Array, ...],
    norms: tuple[tuple[jax.Array, jax.Array], ...],
) -> jax.Array:
    """`Ops.inverted_residual` with stride 1; the operations of `ops` compute its gradient."""
    del ops, precision
    expand, depthwise, project = kernels[0], kernels[1][:, :, 0], kernels[2]
    # The kernel computes a transposed convolution: with stride 2 it upsamples; with stride 1 and a
    # flipped kernel it is a plain convolution.
    if upsample:
        geometry, taps = upsample_geometry(x.shape[1:3], depthwise.shape[0]), block_sums(depthwise)
    else:
        geometry, taps = conv_geometry(x.shape[1:3], depthwise.shape[0], 1), depthwise[::-1, ::-1]
    shape = (x.shape[0], *geometry.size, project.shape[-1])
    arrays = x, expand, taps, project, *sum(norms, ())
    places: dict[str, Any] = dict(stride=geometry.stride, low=geometry.low)
    return native.call("inverted_residual", shape, *arrays, **places)


def _forward(*arguments):
    return inverted_residual(*arguments), arguments[3:]


def _gradients(ops, upsample, precision, arrays, g):
    options = dict(upsample=upsample, precision=precision)
    return jax.vjp(partial(portable.inverted_residual, ops, **options), *arrays)[1](g)


inverted_residual.defvjp(_forward, _gradients)
