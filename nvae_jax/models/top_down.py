"""The top-down tower, which draws the latent groups, coarsest first."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.models.latents import GroupTerms, LatentGroup
from nvae_jax.models.remat import remat_cell


class TopDown(nn.Module):
    """The decoder tower: every latent group, coarsest first (paper, figure 2b)."""

    hierarchy: Hierarchy
    width: int
    encoder_width: int
    num_cells: int
    num_flows: int
    residual_posterior: bool
    remat: str
    run_groups: Callable[..., Any]
    cell: partial
    conv: Callable[..., nn.Module]

    RANDOM: ClassVar = ("start",)

    def initial_values(
        self, shapes: Mapping[str, Sequence[int]], draws: Mapping[str, jax.Array]
    ) -> Mapping[str, jax.Array]:
        """Computes initial values as `layers.Conv.initial_values`."""
        del shapes
        return draws

    @nn.compact
    def __call__(
        self,
        features: Sequence[Sequence[jax.Array]] | None,
        noise: Sequence[jax.Array],
        temperature: jax.Array,
        train: bool,
        source: jax.Array | None = None,
    ) -> tuple[jax.Array, list[GroupTerms]]:
        """Runs all groups.

        Args:
          features: the features from `BottomUp`, or None to draw every group from the prior.
          noise: a list with one (B, h, w, z) array per group.
          temperature: (groups,).
          train: whether batch norm uses batch statistics.
          source: None, or (groups,), each `latents.PRIOR`, `POSTERIOR` or `GIVEN`.

        Returns:
          the state after the last group (B, h, w, width), and a list with one `GroupTerms` per
          group.
        """
        top = self.hierarchy.num_scales - 1
        state, terms = self._start(noise[0].shape[0]), []
        for scale in range(top, -1, -1):
            inputs = _group_inputs(self.hierarchy, scale, features, noise, temperature, source)
            group, name = self._group(scale), f"scale_{scale}"
            if scale == top:
                first = group(first=True, name="first_group")
                state, term = first(state, inputs.pop(0), train)
                terms.append(term)
            if inputs:
                state, more = self.run_groups(self, group, state, inputs, train, name=name)
                terms += more
            if scale:
                width = self.width * self.hierarchy.factor(scale - 1)
                up = remat_cell(self.remat, self.cell)
                state = up(width, resample="up", name=f"up_{scale}")(state, train)
        return state, terms

    def _start(self, batch):
        top = self.hierarchy.num_scales - 1
        size, width = self.hierarchy.size(top), self.width * self.hierarchy.factor(top)
        start = self.param("start", nn.initializers.uniform(1.0), (size, size, width))
        return jnp.broadcast_to(start, (batch, size, size, width))

    def _group(self, scale):
        factor = self.hierarchy.factor(scale)
        return partial(
            LatentGroup,
            width=self.width * factor,
            encoder_width=self.encoder_width * factor,
            latent_channels=self.hierarchy.latent_channels,
            num_cells=self.num_cells,
            num_flows=self.num_flows,
            residual_posterior=self.residual_posterior,
            use_state=not self.hierarchy.is_single,
            cell=self.cell,
            conv=self.conv,
        )


def _group_inputs(hierarchy, scale, features, noise, temperature, source):
    """The inputs of a scale's groups: a list of (feature or None, noise, temperature, source or
    None)."""
    scales = hierarchy.scale_of_group()
    groups = slice(scales.index(scale), scales.index(scale) + hierarchy.groups[scale])
    nothing = [None] * hierarchy.groups[scale]
    feature = nothing if features is None else features[hierarchy.num_scales - 1 - scale]
    source = nothing if source is None else list(source[groups])
    return list(zip(feature, noise[groups], list(temperature[groups]), source, strict=True))
