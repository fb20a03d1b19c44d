"""Passes over the rows of arrays (N, C): sums by column, and maps that use such sums.

Both keep a GPU busy by their number of programs: a program has little work, and a tile of it in
registers. (With 64 parts at most, and 2,048 rows a program, an H200 took three times as long.)
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from nvae_jax.ops.gpu.options import options

ROWS = 32  # of a tile, which a program holds in registers
MOST_CHANNELS = 64  # of a tile; in bfloat16 128 bytes, a whole line of the cache
MAP_TILES = 2  # of a program of a map
SUM_TILES = 4  # of a program that sums, at least
PROGRAMS = 1024  # that sum, at most: eight for each of a card's multiprocessors


def column_sums(
    terms: Callable[..., tuple[jax.Array, jax.Array]],
    arrays: Sequence[jax.Array],
    vectors: Sequence[jax.Array],
    *,
    interpret: bool = False,
) -> jax.Array:
    """Sums by column of two functions of the rows.

    Args:
      terms: (tiles of the arrays, tiles of the vectors) -> two tiles to be summed; in float32.
      arrays: a list of (N, C), float32 or bfloat16.
      vectors: a list of (C,), or of several of them as (n, C); float32.

    Returns:
      (2, C), float32.
    """
    rows, columns = arrays[0].shape
    blocks, tiles = pl.cdiv(columns, _channels(columns)), pl.cdiv(rows, ROWS)
    length = ROWS * max(SUM_TILES, pl.cdiv(tiles * blocks, PROGRAMS))
    kernel = partial(_sum_kernel, terms=terms, count=len(arrays), length=length)
    parts = pl.cdiv(rows, length)
    sums = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((parts, 2, columns), jnp.float32),
        grid=(parts, blocks),
        name="column_sums",
        **options(interpret),
    )(*arrays, *vectors)
    return sums.sum(0)


def map_rows(
    function: Callable[..., tuple[jax.Array, ...]],
    arrays: Sequence[jax.Array],
    vectors: Sequence[jax.Array],
    *,
    results: int,
    interpret: bool = False,
) -> list[jax.Array]:
    """A map over the rows of arrays, and one of vectors.

    Args:
      function: (tiles of the arrays, tiles of the vectors) -> a tile (rows, channels), and
        `results` tiles (1, channels) that are made of the vectors alone; in float32.
      arrays, vectors: as in `column_sums`.
      results: how many vectors the function gives.

    Returns:
      (N, C) in the dtype of the first array, and `results` vectors (C,), float32.
    """
    rows, columns = arrays[0].shape
    length = ROWS * MAP_TILES
    vector = jax.ShapeDtypeStruct((columns,), jnp.float32)
    sizes = dict(count=len(arrays), vectors=len(vectors), length=length)
    return pl.pallas_call(
        partial(_map_kernel, function=function, **sizes),
        out_shape=[jax.ShapeDtypeStruct((rows, columns), arrays[0].dtype), *[vector] * results],
        grid=(pl.cdiv(rows, length), pl.cdiv(columns, _channels(columns))),
        name="map_rows",
        **options(interpret),
    )(*arrays, *vectors)


def _channels(columns):
    return min(pl.next_power_of_2(columns), MOST_CHANNELS)


def _columns(columns):
    """Of this program: the columns, and which of them there are."""
    size = _channels(columns)
    mine = pl.program_id(1) * size + jnp.arange(size)
    return mine, mine < columns


def _vectors(refs, columns, inside):
    vectors = []
    for ref in refs:
        rows = [()] if len(ref.shape) == 1 else [(row,) for row in range(ref.shape[0])]
        places = [ref.at[*row, columns] for row in rows]
        vectors += [plgpu.load(place, mask=inside, other=0.0)[None] for place in places]
    return vectors


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
        found = terms(tiles, given)
        return [t + jnp.where(mask, f, 0.0) for t, f in zip(totals, found, strict=True)]

    zeros = jnp.zeros((ROWS, columns.size), jnp.float32)
    totals = lax.fori_loop(0, pl.cdiv(length, ROWS), add, [zeros, zeros])
    for which, total in enumerate(totals):
        plgpu.store(sums.at[part, which, columns], total.sum(0), mask=inside)


def _map_kernel(*refs, function, count, vectors, length):
    arrays, refs = refs[:count], refs[count:]
    vectors, (mapped, *results) = refs[:vectors], refs[vectors:]
    block = pl.program_id(0)
    columns, inside = _columns(mapped.shape[1])
    given = _vectors(vectors, columns, inside)
    end = jnp.minimum((block + 1) * length, arrays[0].shape[0])

    def move(step, _):
        tiles, mask, at = _tiles(arrays, block * length + step * ROWS, end, columns, inside)
        tile, *_ = function(tiles, given)
        plgpu.store(mapped.at[*at], tile.astype(mapped.dtype), mask=mask)

    lax.fori_loop(0, pl.cdiv(length, ROWS), move, None)
    nothing = [jnp.zeros((1, columns.size), jnp.float32)] * count
    _, *found = function(nothing, given)
    for ref, vector in zip(results, found, strict=True):
        plgpu.store(ref.at[columns], vector[0], mask=inside & (block == 0))
