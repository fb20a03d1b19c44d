"""The depthwise convolution and its gradients in Pallas, for a single NVIDIA GPU.

Channels are innermost in memory and spread over a warp, so every access is a run of whole vectors.
A value is read once and used for all the taps that it meets, whose sums stay in registers.
"""

from functools import partial, reduce
from operator import and_

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from nvae_jax.ops.gpu.options import options
from nvae_jax.ops.portable.geometry import Geometry, accumulator, upsampling

CHANNELS = 64  # per program
# Powers of two: of 8 shapes of a block of outputs, that which was fastest on an H200.
ROWS, COLUMNS, WARPS = 16, 8, 4
# Rows and columns whose kernel gradients a program of one warp adds up at a time, without spilling
# registers. In a step of mnist's config on an H100 they take half of the time of cuDNN's.
GRAD_ROWS, GRAD_COLUMNS = 32, 8
# Maximum number of programs for a kernel gradient: about a dozen per multiprocessor of an H100.
PROGRAMS = 1600


def correlate(
    x: jax.Array,
    w: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    interpret: bool = False,
) -> jax.Array:
    del precision
    place = dict(low=geometry.low, stride=geometry.stride)
    return _convolve(x, w, geometry.out_size, **place, interpret=interpret)


def input_grad(
    g: jax.Array,
    w: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    interpret: bool = False,
) -> jax.Array:
    del precision
    place = dict(low=geometry.kernel_size - 1 - geometry.low, gaps=geometry.stride)
    return _convolve(g, w[::-1, ::-1], geometry.size, **place, interpret=interpret)


def kernel_grad(
    x: jax.Array,
    g: jax.Array,
    geometry: Geometry,
    precision: lax.PrecisionLike,
    interpret: bool = False,
) -> jax.Array:
    del precision
    (batch, _, width, c), k, stride = g.shape, geometry.kernel_size, geometry.stride
    height = pl.cdiv(geometry.size[0] + geometry.low, stride) - geometry.low // stride
    block = min(height, GRAD_ROWS), min(width, GRAD_COLUMNS)
    grid = pl.cdiv(height, block[0]), pl.cdiv(width, block[1])
    units, deep = batch * grid[0] * grid[1], pl.cdiv(c, CHANNELS)
    steps = pl.cdiv(units * deep, PROGRAMS)
    parts = pl.cdiv(units, steps)
    return pl.pallas_call(
        partial(_kernel_grad, geometry=geometry, block=block, grid=grid, steps=steps),
        out_shape=jax.ShapeDtypeStruct((parts, k, k, c), accumulator(x)),
        grid=(parts, deep),
        name="depthwise_kernel_grad",
        **options(interpret, warps=1, stages=1),
    )(x, g).sum(0)


upsample, upsample_input_grad, upsample_kernel_grad = upsampling(correlate, input_grad, kernel_grad)


def _convolve(x, w, size, *, low, stride=1, gaps=1, interpret):
    """Computes y[i] = Σ_d x[(stride · i + d - low) / gaps] w[d] over the d for which the index is a
    whole number."""
    rows, columns = (
        min(pl.next_power_of_2(n), m) for n, m in zip(size, (ROWS, COLUMNS), strict=True)
    )
    batch, c = x.shape[0], x.shape[3]
    blocks = batch * pl.cdiv(size[0], rows) * pl.cdiv(size[1], columns) * pl.cdiv(c, CHANNELS)
    return pl.pallas_call(
        partial(_kernel, rows=rows, columns=columns, low=low, stride=stride, gaps=gaps),
        out_shape=jax.ShapeDtypeStruct((batch, *size, c), x.dtype),
        grid=(blocks,),
        name="depthwise_convolution",
        **options(interpret, WARPS, stages=1),
    )(x, w.astype(accumulator(x)))


def _kernel(x_ref, w_ref, y_ref, *, rows, columns, low, stride, gaps):
    k = w_ref.shape[0]
    image, row, column, channel = _place(y_ref.shape, rows, columns)
    # Rows of inputs, gaps included, from that of the first output.
    meets = range(-low, stride * (rows - 1) + k - low)
    meets = [r for r in meets if r % gaps == 0]
    if y_ref.shape[1] <= rows:
        meets = [r for r in meets if 0 <= r < gaps * x_ref.shape[1]]

    def column_of_taps(dx, sums):
        sums = list(sums)
        w = [_load(w_ref, (dy, dx, 0 * column + channel)) for dy in range(k)]
        across, there = _divide(stride * column + dx - low, gaps)
        for r in meets:
            at = image, _divide(stride * row, gaps)[0] + r // gaps, across, channel
            x = _load(x_ref, at, there == 0).astype(w[0].dtype)
            for i, dy in _pairs(r + low, rows, k, stride):
                sums[i] += x * w[dy]
        return tuple(sums)

    zeros = jnp.zeros(channel.shape, w_ref.dtype)
    sums = lax.fori_loop(0, k, column_of_taps, (zeros,) * rows)
    for i, total in enumerate(sums):
        at = (image, row + i, column, channel)
        plgpu.store(y_ref.at[at], total.astype(y_ref.dtype), mask=_inside(y_ref, at))


def _kernel_grad(x_ref, g_ref, sums_ref, *, geometry, block, grid, steps):
    """Sums the gradient row by row of x. Each value of x and g is read once for all taps."""
    k, stride, low = geometry.kernel_size, geometry.stride, geometry.low
    part, channel = pl.program_id(0), pl.program_id(1) * CHANNELS + jnp.arange(CHANNELS)
    across = range(-low, stride * (block[1] - 1) + k - low)  # from that of the first output
    if grid[1] == 1:
        across = [c for c in across if 0 <= c < geometry.size[1]]

    def unit(step, sums):
        rest, column = _divide(part * steps + step, grid[1])
        image, row = _divide(rest, grid[0])
        row, column = row * block[0] + low // stride, column * block[1]

        def outputs(i):
            at = [(image, i, column + j, channel) for j in range(block[1])]
            return tuple(_load(g_ref, a).astype(sums_ref.dtype) for a in at)

        def rows_of_inputs(i, carry):
            """Adds the terms of the rows of x that no output row after i depends on."""
            sums, before = list(carry[0]), carry[1]
            g = (outputs(i), *before)
            for phase in range(stride):
                at = [(image, stride * i + phase - low, stride * column + c) for c in across]
                x = [_load(x_ref, (*a, channel)).astype(sums_ref.dtype) for a in at]
                for dy in range(phase, k, stride):
                    for c, value in zip(across, x, strict=True):
                        for j, dx in _pairs(c + low, block[1], k, stride):
                            sums[dy * k + dx] += value * g[dy // stride][j]
            return tuple(sums), g[:-1]

        before = tuple(outputs(row - m) for m in range(1, pl.cdiv(k, stride)))
        return lax.fori_loop(row, row + block[0], rows_of_inputs, (sums, before))[0]

    zeros = (jnp.zeros(channel.shape, sums_ref.dtype),) * k**2
    for tap, total in enumerate(lax.fori_loop(0, steps, unit, zeros)):
        at = (part, tap // k, tap % k, channel)
        plgpu.store(sums_ref.at[at], total, mask=channel < sums_ref.shape[3])


def _pairs(position, rows, k, stride):
    """Returns the pairs (output i, tap d) with stride · i + d = position."""
    return [(i, position - stride * i) for i in range(rows) if 0 <= position - stride * i < k]


def _place(shape, rows, columns):
    """Returns image, first row, columns and channels of this program's block. Columns and
    channels are arrays (columns, channels)."""
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
    return (n, 0 * n) if by == 1 else (lax.div(n, by), lax.rem(n, by))


def _inside(ref, at) -> jax.Array:
    lengths = zip(at, ref.shape, strict=True)
    return reduce(and_, ((index >= 0) & (index < length) for index, length in lengths))


def _load(ref, at, where: jax.Array | bool = True):
    """Reads a block; entries outside of the array are zero."""
    return plgpu.load(ref.at[at], mask=_inside(ref, at) & where, other=0)
