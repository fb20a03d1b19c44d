"""Sums of shifted products, each of which XLA's CPU backend compiles to one vectorised loop.

This requires that channels are a separate, innermost dimension. Anything that merges them with
another dimension (a reshape next to the sum is enough) prevents vectorisation, which makes it ten
times slower.
"""

import jax
import jax.numpy as jnp
from jax import lax

from nvae_jax.ops.portable.geometry import Geometry, accumulator, padding, upsampling

# Products summed in one fused loop of `kernel_grad`. More products give a smaller intermediate
# array but a longer compilation; 16 and 32 run equally fast.
_TILE = 16


def correlate(
    x: jax.Array, w: jax.Array, geometry: Geometry, precision: lax.PrecisionLike
) -> jax.Array:
    del precision
    k, dtype = geometry.kernel_size, accumulator(x)
    padded, w = _pad(x, geometry, geometry.out_size), w.astype(dtype)
    total = 0
    for dy in range(k):
        for dx in range(k):
            window = _strided(padded, (dy, dx), geometry.out_size, geometry.stride)
            total += window.astype(dtype) * w[None, None, None, dy, dx]
    return jnp.asarray(total, x.dtype)


def input_grad(
    g: jax.Array, w: jax.Array, geometry: Geometry, precision: lax.PrecisionLike
) -> jax.Array:
    back = _backward(geometry)
    if geometry.stride == 1:
        return correlate(g, w[::-1, ::-1], back, precision)
    taps, dtype = back.kernel_size, accumulator(g)
    front = geometry.low % 2
    margin = (front, 2 * taps - geometry.kernel_size - front)
    w = jnp.pad(w.astype(dtype), (margin, margin, (0, 0)))
    w = w.reshape(taps, 2, taps, 2, -1)[::-1, :, ::-1]
    padded = _pad(g, back, back.out_size)
    total = 0
    for dy in range(taps):
        for dx in range(taps):
            window = _strided(padded, (dy, dx), back.out_size, 1)[:, :, None, :, None]
            total += window.astype(dtype) * w[None, None, dy, :, None, dx]
    height, width = back.out_size
    total = jnp.asarray(total, g.dtype).reshape(g.shape[0], 2 * height, 2 * width, g.shape[-1])
    return total[:, : geometry.size[0], : geometry.size[1]]


def _backward(geometry):
    """The geometry of the stride-1 correlation that computes `input_grad`.

    For stride 1 it uses the flipped kernel. For stride 2, with taps renumbered so that `low` is
    even, tap 2 a + p only meets inputs of parity p: dx[2 i + p] = sum_a g[i + low / 2 - a]
    w[2 a + p]. So all four parities are one correlation over blocks of 2 x 2 inputs, with half as
    many taps.
    """
    size, out_size, k, stride, low = geometry
    if stride == 1:
        return Geometry(out_size, size, k, 1, k - 1 - low)
    front = low % 2
    taps = (k + front + 1) // 2
    blocks = tuple(-(-n // 2) for n in size)
    return Geometry(out_size, blocks, taps, 1, taps - 1 - (low + front) // 2)


def kernel_grad(
    x: jax.Array, g: jax.Array, geometry: Geometry, precision: lax.PrecisionLike
) -> jax.Array:
    del precision
    k, stride = geometry.kernel_size, geometry.stride
    dtype = accumulator(x)
    (rows, down), (columns, across) = _tiles(geometry.out_size)
    blocked = (rows * down, columns * across)
    x = _pad(x, geometry, blocked)
    # g is padded as in `input_grad`, so that both share one array, and so that no operation that
    # produces g is fused into each of the products below and repeated there.
    back = _backward(geometry)
    extent = (n - back.kernel_size + 1 + back.low for n in blocked)
    extent = (max(n, m) for n, m in zip(extent, back.out_size, strict=True))
    g = _pad(g, back, tuple(extent))
    # Outputs are divided into tiles of (down, across) pixels. The first sum is over the pixels of a
    # tile, for all k x k taps at once, to read the inputs of a tile while they are in the cache.
    total = 0
    for dy in range(down):
        for dx in range(across):
            extent = (stride * down * (rows - 1) + k, stride * across * (columns - 1) + k)
            part = _strided(x, (stride * dy, stride * dx), extent, 1)
            part = _windows(part, 2, k, columns, stride * across)
            part = _windows(part, 1, k, rows, stride * down)  # (B, k, rows, k, columns, C)
            pixel = _strided(g, (back.low + dy, back.low + dx), (rows, columns), (down, across))
            total += part.astype(dtype) * pixel.astype(dtype)[:, None, :, None]
    # Sums over tiles and batch are products with ones, because XLA's CPU backend computes a
    # reduction over leading dimensions much more slowly than a matrix product, and would fuse it
    # into the loop above. The batch is summed last, in a separate product, so that a sharded batch
    # stays sharded.
    total = jnp.transpose(total, (0, 1, 3, 2, 4, 5))
    ones = jnp.ones(total.shape[:-1], dtype)
    total = jnp.einsum("byxij,byxijc->byxc", ones, total, precision="highest")
    ones = jnp.ones(total.shape[:1], dtype)
    return jnp.einsum("b,byxc->yxc", ones, total, precision="highest")


def _pad(x, geometry, out_size):
    pads = (padding(n, m, geometry) for n, m in zip(geometry.size, out_size, strict=True))
    config = [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _strided(x, start, size, stride):
    """Slices `size` pixels of x (B, H, W, C), every `stride`-th from `start` on."""
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    stop = (n + s * (m - 1) + 1 for n, m, s in zip(start, size, strides, strict=True))
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[3]), (1, *strides, 1))


def _windows(x, axis, k, count, step):
    """Maps (..., step (count - 1) + k, ...) to (..., k, count, ...) with [d, i] = x[step i + d].

    Repeating x and cutting the result into rows that are one element longer shifts each row by one.
    Slices and reshapes of a broadcast are free inside a fused loop, where a concatenation would
    need branches.
    """
    n = x.shape[axis]
    copies = -(-k * (n + 1) // n)
    head, tail = x.shape[:axis], x.shape[axis + 1 :]
    x = jnp.broadcast_to(jnp.expand_dims(x, axis), (*head, copies, n, *tail))
    x = x.reshape(*head, copies * n, *tail)
    x = lax.slice_in_dim(x, 0, k * (n + 1), axis=axis).reshape(*head, k, n + 1, *tail)
    return lax.slice_in_dim(x, 0, step * (count - 1) + 1, step, axis=axis + 1)


def _tiles(size):
    """Returns ((rows, down), (columns, across)): tiles of at most `_TILE` pixels that cover `size`.

    There are at least two, because the sum over a single tile would be merged with the reshape that
    follows it.
    """
    tiles, room = [], max(min(_TILE, size[0] * size[1] // 2), 1)
    for n in reversed(size):
        count = -(-n // min(room, n))
        length = -(-n // count)
        tiles.append((count, length))
        room //= length
    return tiles[::-1]


upsample, upsample_input_grad, upsample_kernel_grad = upsampling(correlate, input_grad, kernel_grad)
