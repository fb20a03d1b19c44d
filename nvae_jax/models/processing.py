"""Pre- and postprocessing: the cells between images and the towers (paper, figure 2)."""

from collections.abc import Callable

import flax.linen as nn
import jax


class Preprocess(nn.Module):
    """Blocks of (num_cells - 1) cells that keep the resolution, followed by one down cell."""

    num_blocks: int
    num_cells: int
    cell: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (B, H, W, C) to (B, H/2^blocks, W/2^blocks, C·2^blocks)."""
        for block in range(self.num_blocks):
            for i in range(self.num_cells - 1):
                x = self.cell(x.shape[-1], name=f"block_{block}_cell_{i}")(x, train)
            down = self.cell(2 * x.shape[-1], resample="down", name=f"block_{block}_down")
            x = down(x, train)
        return x


class Postprocess(nn.Module):
    """Blocks of one up cell, followed by (num_cells - 1) cells that keep the resolution."""

    num_blocks: int
    num_cells: int
    cell: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps (B, h, w, C) to (B, h·2^blocks, w·2^blocks, C/2^blocks)."""
        for block in range(self.num_blocks):
            x = self.cell(x.shape[-1] // 2, resample="up", name=f"block_{block}_up")(x, train)
            for i in range(1, self.num_cells):
                x = self.cell(x.shape[-1], name=f"block_{block}_cell_{i}")(x, train)
        return x
