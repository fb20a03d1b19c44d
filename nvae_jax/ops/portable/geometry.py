"""What the implementations share: the geometry of a correlation, and upsampling as one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Geometry(NamedTuple):
    """What a correlation needs to know besides its operands (hashable, so static under jit)."""

    size: tuple[int, ...]  # of x: (H, W)
    out_size: tuple[int, ...]  # of y
    kernel_size: int
    stride: int
    low: int


def conv_geometry(size: Sequence[int], kernel_size: int, stride: int) -> Geometry:
    """Of a convolution of `size` inputs with (k - 1) / 2 zeros on every side."""
    out_size = tuple(-(-n // stride) for n in size)
    return Geometry(tuple(size), out_size, kernel_size, stride, low=(kernel_size - 1) // 2)


def upsample_geometry(size: Sequence[int], kernel_size: int) -> Geometry:
    """Of a convolution of `size` inputs repeated twice: that whose transpose it is."""
    doubled = tuple(2 * n for n in size)
    return Geometry(doubled, tuple(size), kernel_size + 1, 2, low=(kernel_size - 1) // 2)


def accumulator(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(jnp.float32, x.dtype)


def padding(size: int, out_size: int, geometry: Geometry) -> tuple[int, int]:
    """Zeros in front and behind (negative: cropped) for `out_size` outputs."""
    behind = geometry.stride * (out_size - 1) + geometry.kernel_size - geometry.low - size
    return geometry.low, behind


def transpose(
    linear: Callable[[jax.Array], jax.Array], like: jax.ShapeDtypeStruct, g: jax.Array
) -> jax.Array:
    (transposed,) = jax.linear_transpose(linear, like)(g)
    return transposed


def upsampling(
    correlate: Callable[..., jax.Array],
    input_grad: Callable[..., jax.Array],
    kernel_grad: Callable[..., jax.Array],
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array], Callable[..., jax.Array]]:
    """The upsampling correlation and its gradients, from those of a plain one of stride 2."""

    def upsample(x, w, geometry, precision):
        return input_grad(x, block_sums(w), geometry, precision)

    def upsample_input_grad(g, w, geometry, precision):
        return correlate(g, block_sums(w), geometry, precision)

    def upsample_kernel_grad(x, g, geometry, precision):
        sums = kernel_grad(g, x, geometry, precision)
        w = jax.ShapeDtypeStruct((geometry.kernel_size - 1,) * 2 + sums.shape[2:], sums.dtype)
        return transpose(block_sums, w, sums)

    return upsample, upsample_input_grad, upsample_kernel_grad


def block_sums(w: jax.Array) -> jax.Array:
    """(k, k, C) -> (k + 1, k + 1, C): w turned round, convolved with 2 x 2 ones."""
    w = w[::-1, ::-1].astype(accumulator(w))
    pads = [((dy, 1 - dy), (dx, 1 - dx), (0, 0)) for dy in (0, 1) for dx in (0, 1)]
    return jnp.asarray(sum(jnp.pad(w, pad) for pad in pads))
