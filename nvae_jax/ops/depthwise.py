"""Depthwise convolution, with the implementation chosen per platform.

XLA's own grouped convolution is far off the hardware on CPU, so there the convolution and both
of its gradients are written as sums of shifted products, which XLA fuses into vectorised loops
over the channels. Compilers for accelerators have their own lowering and get that.

Everything is one linear map or a transpose of it, for a kernel w (k, k, C) of any size, a stride
s and `low` zeros in front (as many behind as the output size asks for):

  correlate:    y[i]  = sum_d x[s i + d - low] w[d]
  input_grad:   dx[n] = sum of y'[i] w[d] over all (i, d) with s i + d - low = n
  kernel_grad:  dw[d] = sum_i x[s i + d - low] y'[i]
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Products added up in one fused loop of `_shifted_kernel_grad`. More of them mean a smaller
# intermediate and a longer compilation; 16 and 32 run equally fast.
_TILE = 16


class _Geometry(NamedTuple):
    """What a correlation needs to know besides its operands (hashable, so static under jit)."""

    size: tuple[int, int]  # of x: (H, W)
    out_size: tuple[int, int]  # of y
    kernel_size: int
    stride: int
    low: int


def depthwise_conv(x, kernel, *, stride=1, implementation=None, precision=None):
    """Cross-correlates every channel with its own kernel, (k - 1) / 2 zeros on every side.

    Args:
      x: (B, H, W, C), float32 or bfloat16; sums are accumulated in float32.
      kernel: (k, k, 1, C), k odd.
      stride: 1 or 2, in both directions. The padding does not depend on it.
      implementation: one of `IMPLEMENTATIONS`, or None to choose by platform when lowered.
      precision: as in `lax.conv_general_dilated`; only the library's convolution reads it.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), C), dtype of x.

    Raises:
      ValueError: for shapes, a stride or an implementation other than these.
    """
    _check(x, kernel, implementation)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")
    k, size = kernel.shape[0], x.shape[1:3]
    out_size = tuple(-(-n // stride) for n in size)
    geometry = _Geometry(size, out_size, k, stride, low=(k - 1) // 2)
    return _apply(x, kernel[:, :, 0], _CONV, geometry, implementation, precision)


def upsample_depthwise_conv(x, kernel, *, implementation=None, precision=None):
    """`depthwise_conv` of x repeated twice along H and W, without making the repeated array.

    Pixels that repeat share their kernel taps: repeating is the transpose of summing 2 x 2
    blocks, so the two together are the transpose of a stride-2 correlation with k + 1 taps. An
    output takes ((k + 1) / 2)^2 products instead of k^2 (9 for 25), in the gradients too.

    Args:
      x: (B, H, W, C).
      kernel: (k, k, 1, C), k odd.
      implementation: as in `depthwise_conv`.
      precision: as in `depthwise_conv`.

    Returns:
      (B, 2 H, 2 W, C), dtype of x.
    """
    _check(x, kernel, implementation)
    k, size = kernel.shape[0], x.shape[1:3]
    geometry = _Geometry((2 * size[0], 2 * size[1]), size, k + 1, stride=2, low=(k - 1) // 2)
    return _apply(x, kernel[:, :, 0], _UPSAMPLE, geometry, implementation, precision)


def _check(x, kernel, implementation):
    k = kernel.shape[0]
    if x.ndim != 4 or kernel.shape != (k, k, 1, x.shape[-1]) or k % 2 == 0:
        raise ValueError(
            "expected x (B, H, W, C) and kernel (k, k, 1, C) with k odd, "
            f"got {x.shape} and {kernel.shape}"
        )
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        known = ", ".join(sorted(IMPLEMENTATIONS))
        raise ValueError(f"unknown implementation {implementation!r}; known: {known}")


# The library's convolution: its transposes come from JAX.


def _library_correlate(x, w, geometry, precision):
    pads = [_pads(n, m, geometry) for n, m in zip(geometry.size, geometry.out_size, strict=True)]
    return lax.conv_general_dilated(
        x,
        w[:, :, None].astype(x.dtype),
        (geometry.stride, geometry.stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=precision,
    )


def _library_input_grad(g, w, geometry, precision):
    x = jax.ShapeDtypeStruct((g.shape[0], *geometry.size, g.shape[-1]), g.dtype)
    return _transpose(lambda x: _library_correlate(x, w, geometry, precision), x, g)


def _library_kernel_grad(x, g, geometry, precision):
    w = jax.ShapeDtypeStruct((geometry.kernel_size,) * 2 + x.shape[-1:], x.dtype)
    dw = _transpose(lambda w: _library_correlate(x, w, geometry, precision), w, g)
    return dw.astype(_accumulator(x))


def _library_upsample(x, w, geometry, precision):
    # A grouped convolution with gaps in its input is not what libraries are good at.
    b, h, wide, c = x.shape
    blocks = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, wide, 2, c))
    repeated = blocks.reshape(b, *geometry.size, c)
    plain = _Geometry(geometry.size, geometry.size, w.shape[0], 1, geometry.low)
    return _library_correlate(repeated, w, plain, precision)


def _library_upsample_input_grad(g, w, geometry, precision):
    x = jax.ShapeDtypeStruct((g.shape[0], *geometry.out_size, g.shape[-1]), g.dtype)
    return _transpose(lambda x: _library_upsample(x, w, geometry, precision), x, g)


def _library_upsample_kernel_grad(x, g, geometry, precision):
    w = jax.ShapeDtypeStruct((geometry.kernel_size - 1,) * 2 + x.shape[-1:], x.dtype)
    dw = _transpose(lambda w: _library_upsample(x, w, geometry, precision), w, g)
    return dw.astype(_accumulator(x))


def _transpose(linear, like, g):
    (transposed,) = jax.linear_transpose(linear, like)(g)
    return transposed


# Shifted products. XLA's CPU backend makes one loop of each sum, provided that the channels stay
# a dimension of their own and the innermost one: whatever merges them with another dimension
# (a reshape next to the sum is enough) costs the vectorisation, a factor of ten.


def _shifted_correlate(x, w, geometry, precision):
    del precision
    k, dtype = geometry.kernel_size, _accumulator(x)
    padded, w = _pad(x, geometry, geometry.out_size), w.astype(dtype)
    total = 0
    for dy in range(k):
        for dx in range(k):
            window = _strided(padded, (dy, dx), geometry.out_size, geometry.stride)
            total += window.astype(dtype) * w[None, None, None, dy, dx]
    return total.astype(x.dtype)


def _shifted_input_grad(g, w, geometry, precision):
    back = _backward(geometry)
    if geometry.stride == 1:
        return _shifted_correlate(g, w[::-1, ::-1], back, precision)
    taps, dtype = back.kernel_size, _accumulator(g)
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
    total = total.astype(g.dtype).reshape(g.shape[0], 2 * height, 2 * width, g.shape[-1])
    return total[:, : geometry.size[0], : geometry.size[1]]


def _backward(geometry):
    """The stride-1 correlation that `input_grad` is.

    Stride 1: the kernel turned round. Stride 2: with taps renumbered so that `low` is even, tap
    2 a + p only meets inputs of parity p, dx[2 i + p] = sum_a g[i + low / 2 - a] w[2 a + p], so
    all four parities are one correlation over blocks of 2 x 2 inputs, of half as many taps.
    """
    size, out_size, k, stride, low = geometry
    if stride == 1:
        return _Geometry(out_size, size, k, 1, k - 1 - low)
    front = low % 2
    taps = (k + front + 1) // 2
    blocks = tuple(-(-n // 2) for n in size)
    return _Geometry(out_size, blocks, taps, 1, taps - 1 - (low + front) // 2)


def _shifted_kernel_grad(x, g, geometry, precision):
    del precision
    k, stride = geometry.kernel_size, geometry.stride
    dtype = _accumulator(x)
    (rows, down), (columns, across) = _tiles(geometry.out_size)
    blocked = (rows * down, columns * across)
    x = _pad(x, geometry, blocked)
    # g is padded as `input_grad` pads it: one array serves both, and no cheap producer of g is
    # fused into, and repeated in, each of the products below.
    back = _backward(geometry)
    extent = (n - back.kernel_size + 1 + back.low for n in blocked)
    extent = (max(n, m) for n, m in zip(extent, back.out_size, strict=True))
    g = _pad(g, back, tuple(extent))
    # Outputs are taken in tiles of (down, across) pixels. The first sum is over the pixels of a
    # tile, for all k x k taps at once so that a tile's inputs are read while they are in cache.
    total = 0
    for dy in range(down):
        for dx in range(across):
            extent = (stride * down * (rows - 1) + k, stride * across * (columns - 1) + k)
            part = _strided(x, (stride * dy, stride * dx), extent, 1)
            part = _windows(part, 2, k, columns, stride * across)
            part = _windows(part, 1, k, rows, stride * down)  # (B, k, rows, k, columns, C)
            pixel = _strided(g, (back.low + dy, back.low + dx), (rows, columns), (down, across))
            total += part.astype(dtype) * pixel.astype(dtype)[:, None, :, None]
    # Sums over tiles and batch as products with ones: XLA's CPU backend computes a reduction over
    # leading dimensions far slower than a matrix product, and would not keep it out of the loop
    # above. The batch comes last, in a product of its own, so that a sharded batch stays sharded.
    total = total.transpose(0, 1, 3, 2, 4, 5)
    ones = jnp.ones(total.shape[:-1], dtype)
    total = jnp.einsum("byxij,byxijc->byxc", ones, total, precision="highest")
    ones = jnp.ones(total.shape[:1], dtype)
    return jnp.einsum("b,byxc->yxc", ones, total, precision="highest")


def _accumulator(x):
    return jnp.promote_types(jnp.float32, x.dtype)


def _pads(size, out_size, geometry):
    """Zeros in front and behind (negative: cropped) for `out_size` outputs."""
    behind = geometry.stride * (out_size - 1) + geometry.kernel_size - geometry.low - size
    return geometry.low, behind


def _pad(x, geometry, out_size):
    pads = (_pads(n, m, geometry) for n, m in zip(geometry.size, out_size, strict=True))
    config = [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _strided(x, start, size, stride):
    """x (B, H, W, C) from pixel `start`, `size` pixels, every `stride`-th."""
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    stop = (n + s * (m - 1) + 1 for n, m, s in zip(start, size, strides, strict=True))
    return lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[3]), (1, *strides, 1))


def _windows(x, axis, k, count, step):
    """(..., step (count - 1) + k, ...) -> (..., k, count, ...) with [d, i] = x[step i + d].

    A copy of x per row, cut into rows of one element more, moves each row on by one. Slices and
    reshapes of a broadcast are free inside a fused loop, where a concatenation would branch.
    """
    n = x.shape[axis]
    copies = -(-k * (n + 1) // n)
    head, tail = x.shape[:axis], x.shape[axis + 1 :]
    x = jnp.broadcast_to(jnp.expand_dims(x, axis), (*head, copies, n, *tail))
    x = x.reshape(*head, copies * n, *tail)
    x = lax.slice_in_dim(x, 0, k * (n + 1), axis=axis).reshape(*head, k, n + 1, *tail)
    return lax.slice_in_dim(x, 0, step * (count - 1) + 1, step, axis=axis + 1)


def _tiles(size):
    """((rows, down), (columns, across)): tiles of at most `_TILE` pixels that cover `size`.

    Two at least: the sum over a single one would be merged with the reshape that follows it.
    """
    tiles, room = [], max(min(_TILE, size[0] * size[1] // 2), 1)
    for n in reversed(size):
        count = -(-n // min(room, n))
        length = -(-n // count)
        tiles.append((count, length))
        room //= length
    return tiles[::-1]


def _shifted_upsample(x, w, geometry, precision):
    return _shifted_input_grad(x, _block_sums(w), geometry, precision)


def _shifted_upsample_input_grad(g, w, geometry, precision):
    return _shifted_correlate(g, _block_sums(w), geometry, precision)


def _shifted_upsample_kernel_grad(x, g, geometry, precision):
    sums = _shifted_kernel_grad(g, x, geometry, precision)
    w = jax.ShapeDtypeStruct((geometry.kernel_size - 1,) * 2 + sums.shape[2:], sums.dtype)
    return _transpose(_block_sums, w, sums)


def _block_sums(w):
    """(k, k, C) -> (k + 1, k + 1, C): w turned round, convolved with 2 x 2 ones."""
    w = w[::-1, ::-1].astype(_accumulator(w))
    pads = [((dy, 1 - dy), (dx, 1 - dx), (0, 0)) for dy in (0, 1) for dx in (0, 1)]
    return sum(jnp.pad(w, pad) for pad in pads)


# (forward, gradient for x, gradient for the kernel) of the two operations; the arguments are
# (x, w), (g, w) and (x, g), then the geometry and the precision.
_CONV = ("correlate", "input_grad", "kernel_grad")
_UPSAMPLE = ("upsample", "upsample_input_grad", "upsample_kernel_grad")

IMPLEMENTATIONS = {
    "library": {
        "correlate": _library_correlate,
        "input_grad": _library_input_grad,
        "kernel_grad": _library_kernel_grad,
        "upsample": _library_upsample,
        "upsample_input_grad": _library_upsample_input_grad,
        "upsample_kernel_grad": _library_upsample_kernel_grad,
    },
    "shifted": {
        "correlate": _shifted_correlate,
        "input_grad": _shifted_input_grad,
        "kernel_grad": _shifted_kernel_grad,
        "upsample": _shifted_upsample,
        "upsample_input_grad": _shifted_upsample_input_grad,
        "upsample_kernel_grad": _shifted_upsample_kernel_grad,
    },
}
_PLATFORMS = {"cpu": "shifted"}
_DEFAULT = "library"


# jit, so that layers of equal shapes are traced and lowered once.
@partial(jax.jit, static_argnames=("name", "geometry", "implementation", "precision"))
def _run(name, a, b, geometry, implementation, precision):
    """One map, in the implementation asked for or the platform's own."""

    def branch(choice):
        return partial(IMPLEMENTATIONS[choice][name], geometry=geometry, precision=precision)

    if implementation is not None:
        return branch(implementation)(a, b)
    branches = {platform: branch(choice) for platform, choice in _PLATFORMS.items()}
    return lax.platform_dependent(a, b, default=branch(_DEFAULT), **branches)


# The rule wraps the choice of platform: differentiated, the choice would save what any of its
# branches needs.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _apply(x, w, operation, geometry, implementation, precision):
    return _run(operation[0], x, w, geometry, implementation, precision)


def _apply_fwd(x, w, *options):
    return _apply(x, w, *options), (x, w)


def _apply_bwd(operation, geometry, implementation, precision, residuals, g):
    x, w = residuals
    options = (geometry, implementation, precision)
    dx = _run(operation[1], g, w, *options)
    dw = _run(operation[2], x, g, *options)
    return dx, dw.astype(w.dtype)


_apply.defvjp(_apply_fwd, _apply_bwd)
