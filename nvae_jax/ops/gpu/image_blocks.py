"""Programs that go over blocks of images (B, H, W, C), pixel by pixel, a channel per thread.

A program goes down the rows of a block and keeps those that the taps of a convolution reach in
registers. So it reads a pixel once for all taps, and what it does to a pixel on the way in is done
once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from nvae_jax.ops.gpu.options import options

CHANNELS, WARPS = 64, 2  # per program
# Maximum size of a block. With more columns, a thread has too few registers for the rows that the
# taps reach.
ROWS, COLUMNS = 32, 8
# Maximum number: eight per multiprocessor of an H100, which has registers for no more. Each writes
# its own part of a sum.
PROGRAMS = 1056

Vectors = list[jax.Array]


@dataclass(frozen=True)
class Blocks:
    """How images are divided among programs: each takes `steps` blocks in turn.

    Attributes:
      shape: (B, H, W, C).
      taps: number of rows, and of columns, around a pixel that a program needs at once; odd.
      phases: 2 if a program also goes over images of twice the height and width, otherwise 1.
    """

    shape: tuple[int, ...]
    taps: int
    phases: int = 1

    @property
    def low(self) -> int:
        """The number of taps in front of a pixel."""
        return self.taps // 2

    @property
    def rows(self) -> int:
        return min(self.shape[1], ROWS)

    @property
    def columns(self) -> int:
        return min(self.shape[2], COLUMNS // self.phases)

    @property
    def per_image(self) -> tuple[int, int]:
        """The number of blocks below and beside each other in an image."""
        return pl.cdiv(self.shape[1], self.rows), pl.cdiv(self.shape[2], self.columns)

    @property
    def steps(self) -> int:
        return pl.cdiv(self._count * self._deep, PROGRAMS)

    @property
    def grid(self) -> tuple[int, int]:
        """The numbers of programs: for the same channels, and for the same blocks."""
        return pl.cdiv(self._count, self.steps), self._deep

    @property
    def _count(self):
        return self.shape[0] * math.prod(self.per_image)

    @property
    def _deep(self):
        return pl.cdiv(self.shape[3], CHANNELS)

    @property
    def reach(self) -> range:
        """The columns that the taps of a block reach, counted from its first. Those that are
        outside of the image for all blocks are left out."""
        beyond = self.low if self.per_image[1] > 1 else 0
        return range(-beyond, self.columns + beyond)

    def call(
        self,
        kernel: Callable[..., None],
        arrays: Sequence[Any],
        results: Any,
        *,
        name: str,
        interpret: bool,
    ) -> Any:
        """Calls a Pallas kernel with all programs."""
        return pl.pallas_call(
            kernel,
            out_shape=results,
            grid=self.grid,
            name=name,
            **options(interpret, WARPS, stages=1),
        )(*arrays)

    def parts(self, *shape: int) -> jax.ShapeDtypeStruct:
        """An array (parts, *shape, C) for a part of a sum by each program."""
        return jax.ShapeDtypeStruct((self.grid[0], *shape, self.shape[3]), jnp.float32)

    def go_down(
        self, read: Callable[..., Any], each: Callable[..., Vectors], totals: Vectors
    ) -> Vectors:
        """In a kernel, goes down the rows of this program's blocks.

        Args:
          read: (image, row, column) -> what is needed of a pixel, which may be outside.
          each: (image, row, first column, window, totals) -> totals; see `around`.
          totals: the initial totals.

        Returns:
          the totals.
        """
        part, (down, across) = pl.program_id(0), self.per_image

        def block(step, totals):
            unit = part * self.steps + step
            image, column = unit // (down * across), unit % across * self.columns
            first = unit // across % down * self.rows

            def line(row):
                return tuple(read(image, row, column + c) for c in self.reach)

            def row(n, carry):
                window, totals = carry
                window = (*window, line(first + n + self.low))
                return window[1:], each(image, first + n, column, window, totals)

            window = tuple(line(first + n) for n in range(-self.low, self.low))
            return lax.fori_loop(0, self.rows, row, (window, totals))[1]

        return lax.fori_loop(0, self.steps, block, totals)

    def around(self, window: Any, column: int) -> Iterator[tuple[tuple[int, int], Any]]:
        """((row, column) of a tap, what was read there) for all taps of a column of a block."""
        for i, line in enumerate(window):
            for j in range(self.taps):
                if column + j - self.low in self.reach:
                    yield (i, j), line[self.reach.index(column + j - self.low)]

    def pixels_at(self, row: Any, column: Any) -> Iterator[tuple[tuple[int, int], Any]]:
        """(phase, (row, column)) of the pixels at the place of one, in images of `phases` times the
        height and width."""
        for i, j in np.ndindex(self.phases, self.phases):
            yield (i, j), (self.phases * row + i, self.phases * column + j)


class Channels:
    """Reads and writes the channels of one program, in float32."""

    def __init__(self, count: int):
        self.numbers = pl.program_id(1) * CHANNELS + jnp.arange(CHANNELS)
        self.there = self.numbers < count

    def zeros(self) -> jax.Array:
        return jnp.zeros(CHANNELS, jnp.float32)

    def vectors(self, *refs: Any) -> Vectors:
        """The vectors of refs (C,), and of refs (parts, n, C) n sums of the parts."""
        return [vector for ref in refs for vector in self._vectors(ref)]

    def _vectors(self, ref):
        if len(ref.shape) == 1:
            return [self._load(ref)]

        def add(part, totals):
            return [total + self._load(ref, part, n) for n, total in enumerate(totals)]

        return lax.fori_loop(0, ref.shape[0], add, [self.zeros()] * ref.shape[1])

    def weights(self, ref: Any) -> dict[tuple[int, ...], jax.Array]:
        """The vectors of a ref (..., C) by their index."""
        return {at: self._load(ref, *at) for at in np.ndindex(ref.shape[:-1])}

    def _load(self, ref, *at):
        return plgpu.load(ref.at[*at, self.numbers], mask=self.there, other=0.0)

    def store_once(self, ref: Any, vector: jax.Array) -> None:
        """Stores a vector that all programs for the same channels have."""
        first = pl.program_id(0) == 0
        plgpu.store(ref.at[self.numbers], vector, mask=self.there & first)

    def store_part(self, ref: Any, vectors: Vectors) -> None:
        """Stores this program's part of a ref (parts, ..., C), vector by vector."""
        for at, vector in zip(np.ndindex(ref.shape[1:-1]), vectors, strict=True):
            plgpu.store(ref.at[pl.program_id(0), *at, self.numbers], vector, mask=self.there)

    def inside(self, ref: Any, *at: Any) -> jax.Array:
        """Which channels there are of the pixel (image, row, column) of a ref (B, H, W, C)."""
        inside = self.there
        for n, size in zip(at, ref.shape, strict=False):
            inside &= (n >= 0) & (n < size)
        return inside

    def pixel(self, ref: Any, inside: jax.Array, *at: Any) -> jax.Array:
        """Reads a pixel; zeros where it is not `inside`."""
        value = plgpu.load(ref.at[*at, self.numbers], mask=inside, other=0.0)
        return value.astype(jnp.float32)

    def store_pixel(self, ref: Any, value: jax.Array, inside: jax.Array, *at: Any) -> jax.Array:
        """Stores a pixel, and returns it as it was rounded."""
        value = value.astype(ref.dtype)
        plgpu.store(ref.at[*at, self.numbers], value, mask=inside)
        return value.astype(jnp.float32)


def masked(inside: jax.Array, value: jax.Array) -> jax.Array:
    """A pixel, with zeros where it is not `inside`."""
    return lax.select(inside, value, lax.full_like(value, 0.0))


def multiply_add(total: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """total + a · b. The thousands of them in a kernel are traced faster than operators."""
    return lax.add(total, lax.mul(a, b))
