"""The geometry of correlations, and upsampling expressed as one; shared by all implementations."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Geometry(NamedTuple):
    """The geometry of a correlation; hashable, so that it can be static under jit."""

    size: tuple[int, ...]  # (H, W) of the input
    out_size: tuple[int, ...]  # (H, W) of the output
    kernel_size: int
    stride: int
    low: int  # zeros in front


def conv_geometry(size: Sequence[int], kernel_size: int, stride: int) -> Geometry:
    """The geometry of a convolution of `size` inputs with (k - 1) / 2 zeros on every side."""
    out_size = tuple(-(-n // stride) for n in size)
    return Geometry(tuple(size), out_size, kernel_size, stride, low=(kernel_size - 1) // 2)


def upsample_geometry(size: Sequence[int], kernel_size: int) -> Geometry:
    """The geometry of the correlation whose transpose is the convolution of `size` upsampled
    inputs."""
    doubled = tuple(2 * n for n in size)
    return Geometry(doubled, tuple(size), kernel_size + 1, 2, low=(kernel_size - 1) // 2)


def accumulator(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(jnp.float32, x.dtype)


def padding(size: int, out_size: int, geometry: Geometry) -> tuple[int, int]:
    """The numbers of zeros in front and behind for `out_size` outputs; negative ones crop."""
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
    """Makes the upsampling map and its gradients from the maps of a correlation of stride 2."""

    def upsample(x, w, geometry, precision, **options):
        return input_grad(x, block_sums(w), geometry, precision, **options)

    def upsample_input_grad(g, w, geometry, precision, **options):
        return correlate(g, block_sums(w), geometry, precision, **options)

    def upsample_kernel_grad(x, g, geometry, precision, **options):
        sums = kernel_grad(g, x, geometry, precision, **options)
        w = jax.ShapeDtypeStruct((geometry.kernel_size - 1,) * 2 + sums.shape[2:], sums.dtype)
        return transpose(block_sums, w, sums)

    return upsample, upsample_input_grad, upsample_kernel_grad


def block_sums(w: jax.Array) -> jax.Array:
    """Flips w (k, k, C) and convolves it with 2 x 2 ones; returns (k + 1, k + 1, C)."""
    w = w[::-1, ::-1].astype(accumulator(w))
    pads = [((dy, 1 - dy), (dx, 1 - dx), (0, 0)) for dy in (0, 1) for dx in (0, 1)]
    return jnp.asarray(sum(jnp.pad(w, pad) for pad in pads))
