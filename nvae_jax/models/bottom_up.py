"""The bottom-up tower, which computes a feature map of the image for each latent group."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.models.remat import remat_cell


class EncoderGroup(nn.Module):
    """The bottom-up cells of one group; their output is the group's feature map."""

    width: int
    num_cells: int
    cell: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, _: None, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps (B, h, w, width) to an array of the same shape, returned as carry and as output of
        the scan over groups."""
        for i in range(self.num_cells):
            x = self.cell(self.width, name=f"cell_{i}")(x, train)
        return x, x


class BottomUp(nn.Module):
    """The encoder tower and its head (paper, figure 2a)."""

    hierarchy: Hierarchy
    width: int
    num_cells: int
    remat: str
    run_groups: Callable[..., Any]
    cell: partial
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[list[jax.Array], ...]:
        """Maps (B, h, w, width) to the feature maps of each scale in top-down order; those of a
        scale are a list with one (B, h, w, C) array per group."""
        features = []
        for scale in range(self.hierarchy.num_scales):
            width = self.width * self.hierarchy.factor(scale)
            x, scale_features = self._tower(scale, width, x, train)
            features.append(scale_features)
            if scale < self.hierarchy.num_scales - 1:
                down = remat_cell(self.remat, self.cell)
                x = down(2 * width, resample="down", name=f"down_{scale}")(x, train)
        # The first latent group gets the head's output instead of the last group's feature map.
        head = nn.elu(self.conv(x.shape[-1], 1, name="head")(nn.elu(x)))
        features[-1][0] = head
        return tuple(reversed(features))

    def _tower(self, scale, width, x, train):
        if self.hierarchy.is_single:
            return x, [x]
        group = partial(EncoderGroup, width=width, num_cells=self.num_cells, cell=self.cell)
        inputs = [None] * self.hierarchy.groups[scale]
        x, features = self.run_groups(self, group, x, inputs, train, name=f"scale_{scale}")
        return x, features[::-1]
