"""The body of an inverted residual cell with fixed statistics, for inference."""

from collections.abc import Sequence

import jax
from jax.lax import PrecisionLike

from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable.normalization import affine, swish


def inverted_residual(
    ops: Ops,
    x: jax.Array,
    kernels: Sequence[jax.Array],
    norms: Sequence[tuple[jax.Array, jax.Array]],
    *,
    stride: int = 1,
    upsample: bool = False,
    precision: PrecisionLike = None,
) -> jax.Array:
    """`Ops.inverted_residual`, composed of other operations of `ops`."""
    (expand, depthwise, project), (first, before, after, last) = kernels, norms
    x = swish(affine(ops.conv(affine(x, *first), expand, precision=precision), *before))
    if upsample:
        x = ops.upsample_depthwise_conv(x, depthwise, precision=precision)
    else:
        x = ops.depthwise_conv(x, depthwise, stride=stride, precision=precision)
    return affine(ops.conv(swish(affine(x, *after)), project, precision=precision), *last)
