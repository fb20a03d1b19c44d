"""The body of an inverted residual cell whose statistics are fixed, as one C++ kernel, in float32.

Its hidden channels, six times as many as others, would be written to memory and read again at every
step. The kernel takes an image through all steps, a block of channels after the other, and keeps
them in its caches.
"""

from functools import partial
from typing import Any

import jax
from jax.lax import PrecisionLike

from nvae_jax.ops.cpu import native
from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import inverted_residual as portable
from nvae_jax.ops.portable.geometry import block_sums, conv_geometry, upsample_geometry

# A task of the kernel is whole images: the largest that leave room for others in a core's cache,
# and the fewest tasks of so many pixels that are worth it.
_MOST_PIXELS, _TASK_PIXELS, _FEWEST_TASKS = 64 * 64, 64, 8


def supports(x: jax.Array, *, stride: int, upsample: bool) -> bool:
    """Whether images x (B, H, W, C) are small enough for a cache, and enough to be shared out."""
    batch, height, width, _ = x.shape
    pixels = height * width
    tasks = batch / max(1, _TASK_PIXELS // pixels)
    fits = pixels * (4 if upsample else 1) <= _MOST_PIXELS and tasks >= _FEWEST_TASKS
    return stride == 1 and fits


# jit, so that layers of equal shapes are traced and lowered once.
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
    """`Ops.inverted_residual` of stride 1; its derivative is that of the operations of `ops`."""
    del ops, precision
    expand, depthwise, project = kernels[0], kernels[1][:, :, 0], kernels[2]
    # The kernel computes transposes: of stride 2 what doubles, of stride 1 a plain convolution.
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
