"""A depthwise convolution with an activation on either side, for models that do not train.

Batch norms whose statistics are fixed scale and shift channels. A kernel can do that, and apply
swish, to what it has in its caches anyway; otherwise each is a pass over memory.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nvae_jax.ops.by_platform import by_platform
from nvae_jax.ops.depthwise import depthwise_conv, native, upsample_depthwise_conv
from nvae_jax.ops.normalization import affine, swish


def activated_depthwise_conv(
    x,
    kernel,
    before,
    after,
    *,
    stride=1,
    upsample=False,
    implementation=None,
    precision=None,
):
    """swish(after(conv(swish(before(x))))), the padding being zeros behind the first activation.

    Args:
      x: (B, H, W, C), float32 or bfloat16.
      kernel: (k, k, 1, C), k odd.
      before, after: (gain, shift) of (C,) each, float32; `before` is applied as gain · x + shift.
      stride: as in `depthwise_conv`.
      upsample: convolve the doubled array, as `upsample_depthwise_conv`; the stride is then 1.
      implementation: as in `depthwise_conv`; "native" makes one call of it where x is float32.
      precision: as in `depthwise_conv`.

    Returns:
      (B, H', W', C), dtype of x.

    Raises:
      as `depthwise_conv`.
    """
    if implementation == "native" and x.dtype == jnp.float32:
        return _at_once(x, kernel, before, after, stride, upsample, precision)
    options = dict(stride=stride, upsample=upsample, precision=precision)
    return _one_by_one(x, kernel, before, after, implementation=implementation, **options)


def _one_by_one(x, kernel, before, after, *, stride, upsample, **options):
    x = swish(affine(x, *before))
    if upsample:
        y = upsample_depthwise_conv(x, kernel, **options)
    else:
        y = depthwise_conv(x, kernel, stride=stride, **options)
    return swish(affine(y, *after))


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
@partial(jax.jit, static_argnums=(4, 5, 6))
def _at_once(x, kernel, before, after, stride, upsample, precision):
    parts = partial(_one_by_one, stride=stride, upsample=upsample, precision=precision)
    return by_platform(
        x,
        kernel,
        before,
        after,
        cpu=partial(_native, stride=stride, upsample=upsample),
        default=partial(parts, implementation="library"),
    )


def _native(x, kernel, before, after, *, stride, upsample):
    if upsample:
        return native.activated_upsample(x, kernel[:, :, 0], before, after)
    return native.activated(x, kernel[:, :, 0], before, after, stride)


def _at_once_fwd(*arguments):
    return _at_once(*arguments), arguments[:4]


def _at_once_bwd(stride, upsample, precision, residuals, g):
    parts = partial(_one_by_one, stride=stride, upsample=upsample, precision=precision)
    return jax.vjp(partial(parts, implementation="native"), *residuals)[1](g)


_at_once.defvjp(_at_once_fwd, _at_once_bwd)
