"""The body of an inverted residual cell whose statistics are fixed, for models that do not train.

Its hidden channels, six times as many as others, would be written to memory and read again at every
step. A kernel that takes an image through all steps, a block of them after the other, keeps them in
its caches.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nvae_jax.ops import native
from nvae_jax.ops.by_platform import by_platform
from nvae_jax.ops.convolution import conv
from nvae_jax.ops.depthwise.activated import activated_depthwise_conv
from nvae_jax.ops.depthwise.geometry import block_sums, convolving, doubling
from nvae_jax.ops.normalization import affine
from nvae_jax.ops.stacks import entry, taken

# Of the C++ kernel, whose tasks are whole images: the largest that leaves room for others in a
# core's cache, and the fewest tasks of so many pixels that are worth it.
_MOST_PIXELS, _TASK_PIXELS, _FEWEST_TASKS = 64 * 64, 64, 8


def inverted_residual(
    x, kernels, norms, *, stride=1, upsample=False, implementation=None, precision=None
):
    """Norm, 1×1 convolution, norm, swish, depthwise convolution, norm, swish, 1×1 convolution, norm
    (paper, section 3.1, figure 3a).

    Args:
      x: (B, H, W, C), float32 or bfloat16.
      kernels: (1, 1, C, E), (k, k, 1, E) with k odd, and (1, 1, E, O), dtype of x; or each as a
        `stacks.Entry`, of which the C++ kernel makes no copy.
      norms: four pairs (gain, shift) of vectors, float32: gain · x + shift.
      stride: of the depthwise convolution, 1 or 2.
      upsample: the depthwise convolution sees its input doubled by nearest neighbours.
      implementation: as in `depthwise_conv`. "native" makes one call of it where x is float32, of
        batches large enough to share out and images small enough for a cache.
      precision: as in `depthwise_conv`.

    Returns:
      (B, H', W', O), dtype of x.

    Raises:
      as `depthwise_conv`.
    """
    by_native = implementation == "native" and x.dtype == jnp.float32
    if by_native and stride == 1 and _fits(x, upsample):
        expand, depthwise, project = kernels
        kernels = entry(expand), taken(depthwise), entry(project)
        return _at_once(x, kernels, tuple(norms), upsample, precision)
    options = dict(implementation=implementation, precision=precision)
    return _one_by_one(x, kernels, norms, stride=stride, upsample=upsample, **options)


def _fits(x, upsample):
    batch, height, width, _ = x.shape
    pixels = height * width
    tasks = batch / max(1, _TASK_PIXELS // pixels)
    return pixels * (4 if upsample else 1) <= _MOST_PIXELS and tasks >= _FEWEST_TASKS


def _one_by_one(x, kernels, norms, *, stride=1, upsample=False, **options):
    (expand, depthwise, project), (first, before, after, last) = map(taken, kernels), norms
    x = conv(affine(x, *first), expand, **options)
    x = activated_depthwise_conv(
        x, depthwise, before, after, stride=stride, upsample=upsample, **options
    )
    return affine(conv(x, project, **options), *last)


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
@partial(jax.jit, static_argnums=(3, 4))
def _at_once(x, kernels, norms, upsample, precision):
    parts = partial(_one_by_one, upsample=upsample, precision=precision)
    return by_platform(
        x,
        kernels,
        norms,
        cpu=partial(_native, upsample=upsample),
        default=partial(parts, implementation="library"),
    )


def _native(x, kernels, norms, *, upsample):
    expand, depthwise, project = kernels[0], kernels[1][:, :, 0], kernels[2]
    # The kernel computes transposes: of stride 2 what doubles, of stride 1 a plain convolution.
    if upsample:
        geometry, taps = doubling(x.shape[1:3], depthwise.shape[0]), block_sums(depthwise)
    else:
        geometry, taps = convolving(x.shape[1:3], depthwise.shape[0], 1), depthwise[::-1, ::-1]
    shape = (x.shape[0], *geometry.size, project.stack.shape[-1])
    options = dict(stride=geometry.stride, low=geometry.low)
    arrays = expand.index, project.index, x, expand.stack, taps, project.stack, *sum(norms, ())
    return native.call("inverted_residual", shape, *arrays, **options)


def _at_once_fwd(*arguments):
    return _at_once(*arguments), arguments[:3]


def _at_once_bwd(upsample, precision, residuals, g):
    parts = partial(_one_by_one, upsample=upsample, precision=precision)
    return jax.vjp(partial(parts, implementation="native"), *residuals)[1](g)


_at_once.defvjp(_at_once_fwd, _at_once_bwd)
