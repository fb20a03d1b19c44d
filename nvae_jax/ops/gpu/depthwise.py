"""The convolution of stride 1 and its input gradient in Pallas, for a single NVIDIA GPU.

A program makes a block of rows x columns x channels. Channels are innermost in memory and spread
over a warp, so every access is a run of whole vectors. A row of inputs, moved by one column of
taps, is read once and added to all rows of outputs that it meets, whose sums stay in registers.
The rest is the library's, whose kernel gradient is the faster one.
"""

from functools import partial, reduce
from operator import and_

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from nvae_jax.ops.portable import library
from nvae_jax.ops.portable.geometry import Geometry, accumulator

# Powers of two: of 8 shapes of a block, that which was fastest on an H200.
ROWS, COLUMNS, CHANNELS, WARPS = 16, 8, 64, 4


def correlate(
    x: jax.Array,
    w: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    interpret: bool = False,
) -> jax.Array:
    if geometry.stride > 1:
        return library.correlate(x, w, geometry, precision)
    return _convolve(x, w, geometry.out_size, geometry.low, interpret)


def input_grad(
    g: jax.Array,
    w: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    interpret: bool = False,
) -> jax.Array:
    if geometry.stride > 1:
        return library.input_grad(g, w, geometry, precision)
    low = geometry.kernel_size - 1 - geometry.low
    return _convolve(g, w[::-1, ::-1], geometry.size, low, interpret)


def _by_library(name):
    def function(*arguments, interpret=False):
        del interpret
        return getattr(library, name)(*arguments)

    return function


kernel_grad = _by_library("kernel_grad")
upsample = _by_library("upsample")
upsample_input_grad = _by_library("upsample_input_grad")
upsample_kernel_grad = _by_library("upsample_kernel_grad")


def _convolve(x, w, size, low, interpret):
    rows, columns = (
        min(pl.next_power_of_2(n), m) for n, m in zip(size, (ROWS, COLUMNS), strict=True)
    )
    batch, c = x.shape[0], x.shape[3]
    blocks = batch * pl.cdiv(size[0], rows) * pl.cdiv(size[1], columns) * pl.cdiv(c, CHANNELS)
    return pl.pallas_call(
        partial(_kernel, rows=rows, columns=columns, low=low),
        out_shape=jax.ShapeDtypeStruct((batch, *size, c), x.dtype),
        grid=(blocks,),
        name="depthwise_convolution",
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
    )(x, w.astype(accumulator(x)))


def _kernel(x_ref, w_ref, y_ref, *, rows, columns, low):
    k = w_ref.shape[0]
    image, row, column, channel = _place(y_ref.shape, rows, columns)
    meets = [r - low for r in range(rows + k - 1)]  # rows of inputs, from the first of outputs
    if y_ref.shape[1] <= rows:
        meets = [r for r in meets if 0 <= r < x_ref.shape[1]]

    def column_of_taps(dx, sums):
        sums = list(sums)
        w = [_load(w_ref, (dy, dx, 0 * column + channel)) for dy in range(k)]
        for r in meets:
            x = _load(x_ref, (image, row + r, column + dx - low, channel)).astype(w[0].dtype)
            for dy in range(k):
                if 0 <= r + low - dy < rows:
                    sums[r + low - dy] += x * w[dy]
        return tuple(sums)

    zeros = jnp.zeros(channel.shape, w_ref.dtype)
    sums = lax.fori_loop(0, k, column_of_taps, (zeros,) * rows)
    for i, total in enumerate(sums):
        at = (image, row + i, column, channel)
        plgpu.store(y_ref.at[at], total.astype(y_ref.dtype), mask=_inside(y_ref, at))


def _place(shape, rows, columns):
    """(image, first row, columns, channels) of this program, the last two (columns, channels)."""
    down, across, deep = (
        pl.cdiv(n, m) for n, m in zip(shape[1:], (rows, columns, CHANNELS), strict=True)
    )
    place, c = _divide(pl.program_id(0), deep)
    place, m = _divide(place, across)
    image, n = _divide(place, down)
    block = (columns, CHANNELS)
    column = m * columns + lax.broadcasted_iota(jnp.int32, block, 0)
    channel = c * CHANNELS + lax.broadcasted_iota(jnp.int32, block, 1)
    return image, n * rows, column, channel


def _divide(n, by):
    return lax.div(n, by), lax.rem(n, by)


def _inside(ref, at):
    lengths = zip(at[1:], ref.shape[1:], strict=True)
    return reduce(and_, ((index >= 0) & (index < length) for index, length in lengths))


def _load(ref, at):
    """A block, zeros where it lies outside."""
    return plgpu.load(ref.at[at], mask=_inside(ref, at), other=0)
