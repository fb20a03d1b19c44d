"""Passes over the rows of arrays (N, C): sums by column, and maps that use such sums.

Such a pass mostly waits for memory. So a program reads all its inputs at once, with many warps, and
keeps them in registers. If a sum has few parts, the kernel that reads it adds them up.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from nvae_jax.ops.gpu.options import options

# Rows, channels and warps of a program. With these sizes the compiler uses vector loads and stores
# and spills no register, and there are some hundred programs. No others were compared on a card.
SUM_ROWS, SUM_CHANNELS, SUM_WARPS = 512, 32, 8
MAP_ROWS, MAP_CHANNELS, MAP_WARPS = 128, 64, 8
FEW = 32  # parts of a sum: every program of a map adds up so many by itself
PROGRAMS = 1024  # maximum number that sum; for more tiles, each takes several in turn


def column_sums(
    terms: Callable[..., tuple[jax.Array, jax.Array]],
    arrays: Sequence[jax.Array],
    vectors: Sequence[jax.Array],
    *,
    interpret: bool = False,
) -> jax.Array:
    """Sums two functions of the rows over the rows, in parts.

    Args:
      terms: (tiles of the arrays, tiles of the vectors) -> two tiles to be summed; in float32.
      arrays: a list of (N, C), float32 or bfloat16.
      vectors: a list of (C,), or of several of them as (n, C), or of parts of a sum as
        (parts, n, C); float32.

    Returns:
      (parts, 2, C), float32: the parts of the two sums, in the form that `map_rows` takes.
    """
    rows, columns = arrays[0].shape
    tile = _tile(rows, SUM_ROWS), _tile(columns, SUM_CHANNELS)
    blocks, tiles = pl.cdiv(columns, tile[1]), pl.cdiv(rows, tile[0])
    steps = pl.cdiv(tiles * blocks, PROGRAMS)
    parts = pl.cdiv(tiles, steps)
    sums = pl.pallas_call(
        partial(_sum_kernel, terms=terms, count=len(arrays), tile=tile, steps=steps),
        out_shape=jax.ShapeDtypeStruct((parts, 2, columns), jnp.float32),
        grid=(parts, blocks),
        name="column_sums",
        **options(interpret, SUM_WARPS),
    )(*arrays, *vectors)
    return few(sums)


def few(sums: jax.Array) -> jax.Array:
    """Returns sums (parts, n, C) as they are, or added up if they have more than `FEW` parts."""
    return sums if len(sums) <= FEW else sums.sum(0, keepdims=True)


def map_rows(
    function: Callable[..., tuple[jax.Array, ...]],
    arrays: Sequence[jax.Array],
    vectors: Sequence[jax.Array],
    *,
    results: int,
    interpret: bool = False,
) -> list[jax.Array]:
    """Applies a function to the rows of arrays and to vectors.

    Args:
      function: (tiles of the arrays, tiles of the vectors) -> a tile (rows, channels), and
        `results` tiles (1, channels) that are made of the vectors alone; in float32.
      arrays, vectors: as in `column_sums`.
      results: how many vectors the function gives.

    Returns:
      (N, C) in the dtype of the first array, and `results` vectors (C,), float32.
    """
    rows, columns = arrays[0].shape
    tile = _tile(rows, MAP_ROWS), _tile(columns, MAP_CHANNELS)
    vector = jax.ShapeDtypeStruct((columns,), jnp.float32)
    sizes = dict(count=len(arrays), vectors=len(vectors), tile=tile)
    return pl.pallas_call(
        partial(_map_kernel, function=function, **sizes),
        out_shape=[jax.ShapeDtypeStruct((rows, columns), arrays[0].dtype), *[vector] * results],
        grid=(pl.cdiv(rows, tile[0]), pl.cdiv(columns, tile[1])),
        name="map_rows",
        **options(interpret, MAP_WARPS),
    )(*arrays, *vectors)


def _tile(size, most):
    return min(pl.next_power_of_2(size), most)


def _load(ref, *at, inside):
    at = jnp.broadcast_arrays(*at)
    mask = jnp.broadcast_to(inside, at[0].shape)
    return plgpu.load(ref.at[*at], mask=mask, other=0.0).astype(jnp.float32)


class _Tile:
    """The indices of one tile, rows (rows, 1) and columns (1, channels), and masks of those
    that are inside of the array."""

    def __init__(self, shape, size, row, column):
        self.rows = row * size[0] + jnp.arange(size[0])[:, None]
        # Eight bytes of bfloat16 a thread, as many channels as of a vector: then tile and vectors
        # lie alike, and no tile has to be moved between threads.
        columns = plgpu.max_contiguous(jnp.arange(size[1]), 4)
        self.columns = column * size[1] + columns[None]
        self.there = self.columns < shape[1]
        self.inside = (self.rows < shape[0]) & self.there

    def load(self, refs):
        return [_load(ref, self.rows, self.columns, inside=self.inside) for ref in refs]

    def store(self, ref, value):
        at = jnp.broadcast_arrays(self.rows, self.columns)
        plgpu.store(ref.at[*at], value.astype(ref.dtype), mask=self.inside)

    def store_vector(self, ref, *at, value, where: jax.Array | bool = True):
        plgpu.store(ref.at[*at, self.columns[0]], value, mask=self.there[0] & where)

    def vectors(self, refs):
        """Returns tiles (1, channels): one of a ref (C,), n of a ref (n, C) or (parts, n, C)."""
        return [vector for ref in refs for vector in self._rows(ref)]

    def _rows(self, ref):
        if len(ref.shape) == 1:
            return [_load(ref, self.columns, inside=self.there)]
        if len(ref.shape) == 2:
            return [_load(ref, row, self.columns, inside=self.there) for row in range(ref.shape[0])]
        # At least four a thread, for the same reason.
        least = 4 * 32 * MAP_WARPS // self.columns.size
        parts = jnp.arange(max(pl.next_power_of_2(ref.shape[0]), least))[:, None]
        inside = (parts < ref.shape[0]) & self.there
        tiles = [_load(ref, parts, n, self.columns, inside=inside) for n in range(ref.shape[1])]
        return [tile.sum(0, keepdims=True) for tile in tiles]


def _sum_kernel(*refs, terms, count, tile, steps):
    *inputs, sums = refs
    arrays, vectors = inputs[:count], inputs[count:]
    part = pl.program_id(0)
    place = partial(_Tile, arrays[0].shape, tile, column=pl.program_id(1))

    def add(step, totals):
        here = place(part * steps + step)
        found = terms(here.load(arrays), here.vectors(vectors))
        found = [jnp.where(here.inside, value, 0.0).sum(0) for value in found]
        return [total + value for total, value in zip(totals, found, strict=True)]

    zeros = jnp.zeros(tile[1], jnp.float32)
    totals = lax.fori_loop(0, steps, add, [zeros, zeros])
    for which, total in enumerate(totals):
        place(part).store_vector(sums, part, which, value=total)


def _map_kernel(*refs, function, count, vectors, tile):
    arrays, refs = refs[:count], refs[count:]
    vectors, (mapped, *results) = refs[:vectors], refs[vectors:]
    here = _Tile(mapped.shape, tile, pl.program_id(0), pl.program_id(1))
    tiles, given = here.load(arrays), here.vectors(vectors)
    value, *_ = function(tiles, given)
    here.store(mapped, value)
    _, *found = function([jnp.zeros_like(given[0])] * count, given)
    for ref, vector in zip(results, found, strict=True):
        here.store_vector(ref, value=vector[0], where=pl.program_id(0) == 0)
