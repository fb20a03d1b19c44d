"""Two passes over the rows of arrays (N, C): sums by column, and then maps that use the sums.

The first pass leaves partial sums, which every program of the second adds up for itself: two
kernels, where a sum, its second stage, what is made of it and its use would be four.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

ROWS = 32  # of a tile, which a program holds in registers
MOST_CHANNELS = 64  # of a tile; in bfloat16 128 bytes, a whole line of the cache
WARPS = 4
BYTES = 2**16  # that a program of the first pass reads of each array, at least
MOST_PARTS = 64


def partial_sums(terms, arrays, vectors, *, interpret=False):
    """Sums by column of two functions of the rows, in parts.

    Args:
      terms: (tiles of the arrays, tiles of the vectors) -> two tiles to be summed; in float32.
      arrays: a list of (N, C), float32 or bfloat16.
      vectors: a list of (C,), float32.

    Returns:
      (parts, 2, C), float32; its sum over the parts is what is meant.
    """
    rows, columns = arrays[0].shape
    parts = _parts(rows, columns * arrays[0].dtype.itemsize)
    kernel = partial(_sum_kernel, terms=terms, count=len(arrays), length=_ceil(rows, parts))
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((parts, 2, columns), jnp.float32),
        grid=(parts, _ceil(columns, _channels(columns))),
        name="column_sums",
        **_options(interpret),
    )(*arrays, *vectors)


def map_rows(function, arrays, vectors, sums, *, results, interpret=False):
    """A map over the rows of arrays that uses sums by column.

    Args:
      function: (tiles of the arrays, tiles of the vectors, the two sums' tiles) -> a tile (rows,
        channels), and `results` tiles (channels,); in float32.
      arrays, vectors: as in `partial_sums`.
      sums: from `partial_sums`.
      results: how many vectors the function gives.

    Returns:
      (N, C) in the dtype of the first array, and `results` vectors (C,), float32.
    """
    rows, columns = arrays[0].shape
    length = max(256, ROWS * len(sums))  # rows a program: enough to be worth adding up the sums
    vector = jax.ShapeDtypeStruct((columns,), jnp.float32)
    kernel = partial(_map_kernel, function=function, count=len(arrays), length=length)
    return pl.pallas_call(
        partial(kernel, vectors=len(vectors)),
        out_shape=[jax.ShapeDtypeStruct((rows, columns), arrays[0].dtype), *[vector] * results],
        grid=(_ceil(rows, length), _ceil(columns, _channels(columns))),
        name="map_rows",
        **_options(interpret),
    )(*arrays, *vectors, sums)


def _ceil(n, length):
    return -(-n // length)


def _channels(columns):
    return min(pl.next_power_of_2(columns), MOST_CHANNELS)


def _parts(rows, row_bytes):
    """A power of two, so that a program can hold all parts as one tile."""
    wanted = min(max(rows * min(row_bytes, 2 * MOST_CHANNELS) // BYTES, 1), MOST_PARTS)
    return pl.next_power_of_2(wanted)


def _options(interpret):
    return dict(
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=2), interpret=interpret
    )


def _columns(columns):
    """Of this program: the columns, and which of them there are."""
    size = _channels(columns)
    mine = pl.program_id(1) * size + jnp.arange(size)
    return mine, mine < columns


def _vectors(refs, columns, inside):
    return [plgpu.load(ref.at[columns], mask=inside, other=0.0) for ref in refs]


def _tiles(refs, row, end, columns, inside):
    """Of each array the rows from `row` on, before `end`, in float32; and which there are."""
    rows = row + jnp.arange(ROWS)
    mask = (rows < end)[:, None] & inside[None]
    at = jnp.broadcast_arrays(rows[:, None], columns[None])
    tiles = [plgpu.load(ref.at[*at], mask=mask, other=0.0) for ref in refs]
    return [tile.astype(jnp.float32) for tile in tiles], mask, at


def _sum_kernel(*refs, terms, count, length):
    *inputs, sums = refs
    arrays, vectors = inputs[:count], inputs[count:]
    part = pl.program_id(0)
    columns, inside = _columns(sums.shape[2])
    given = _vectors(vectors, columns, inside)
    end = jnp.minimum((part + 1) * length, arrays[0].shape[0])

    def add(step, totals):
        row = part * length + step * ROWS
        tiles, mask, _ = _tiles(arrays, row, end, columns, inside)
        found = terms(tiles, [vector[None] for vector in given])
        return [t + jnp.where(mask, f, 0.0) for t, f in zip(totals, found, strict=True)]

    zeros = jnp.zeros((ROWS, columns.size), jnp.float32)
    totals = lax.fori_loop(0, _ceil(length, ROWS), add, [zeros, zeros])
    for which, total in enumerate(totals):
        plgpu.store(sums.at[part, which, columns], total.sum(0), mask=inside)


def _map_kernel(*refs, function, count, vectors, length):
    arrays, refs = refs[:count], refs[count:]
    vectors, (sums, mapped, *results) = refs[:vectors], refs[vectors:]
    block = pl.program_id(0)
    columns, inside = _columns(sums.shape[2])
    given = [vector[None] for vector in _vectors(vectors, columns, inside)]
    totals = [_total(sums, which, columns, inside)[None] for which in (0, 1)]
    end = jnp.minimum((block + 1) * length, arrays[0].shape[0])

    def move(step, _):
        tiles, mask, at = _tiles(arrays, block * length + step * ROWS, end, columns, inside)
        tile, *_ = function(tiles, given, totals)
        plgpu.store(mapped.at[*at], tile.astype(mapped.dtype), mask=mask)

    lax.fori_loop(0, _ceil(length, ROWS), move, None)
    nothing = [jnp.zeros((1, columns.size), jnp.float32)] * count
    _, *found = function(nothing, given, totals)
    for ref, vector in zip(results, found, strict=True):
        plgpu.store(ref.at[columns], vector[0], mask=inside & (block == 0))


def _total(sums, which, columns, inside):
    parts = jnp.broadcast_to(jnp.arange(sums.shape[0])[:, None], (sums.shape[0], columns.size))
    at = parts, which, jnp.broadcast_to(columns[None], parts.shape)
    mask = jnp.broadcast_to(inside[None], parts.shape)
    return plgpu.load(sums.at[*at], mask=mask, other=0.0).sum(0)
