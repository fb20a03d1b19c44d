"""The latent hierarchy: the number of groups, their resolutions and their widths."""

import math
from dataclasses import dataclass
from itertools import accumulate

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Hierarchy:
    """Scales and groups of the latents (paper, section 3).

    Scales are numbered from the finest, 0, to the coarsest, `num_scales` - 1.

    Attributes:
      image_size: height and width of the images, with padding.
      num_scales: number of scales.
      num_groups: number of groups of the finest scale.
      latent_channels: number of channels of each group.
      process_blocks: number of times that preprocessing halves the resolution.
      adaptive_groups: whether each scale has half as many groups as the next finer one; otherwise
        all have the same number.
      min_groups: smallest number of groups of a scale, with `adaptive_groups`.

    Raises:
      ValueError: if a number is not positive, or the image size cannot be halved so often.
    """

    image_size: int
    num_scales: int
    num_groups: int
    latent_channels: int
    process_blocks: int
    adaptive_groups: bool = False
    min_groups: int = 1

    def __post_init__(self):
        for name in ("image_size", "num_scales", "num_groups", "latent_channels", "min_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if self.process_blocks < 0:
            raise ValueError("model.process_blocks must not be negative")
        halvings = self.process_blocks + self.num_scales - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"data.image_size={self.image_size} is not divisible by {2**halvings} = "
                f"2^(model.process_blocks={self.process_blocks} + "
                f"model.num_scales={self.num_scales} - 1)"
            )

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of groups of each scale, finest first."""
        counts = [self.num_groups]
        while len(counts) < self.num_scales:
            halved = max(counts[-1] // 2, self.min_groups)
            counts.append(halved if self.adaptive_groups else self.num_groups)
        return tuple(counts)

    @property
    def is_single(self) -> bool:
        """Whether there is only one group: a degenerate case without towers."""
        return self.groups == (1,)

    def factor(self, scale: int) -> int:
        """The factor by which a scale's resolution is smaller, and its width larger, than at the
        image's resolution."""
        return 2 ** (self.process_blocks + scale)

    def size(self, scale: int) -> int:
        """Height and width of the scale's feature maps."""
        return self.image_size // self.factor(scale)

    def scale_of_group(self) -> tuple[int, ...]:
        """The scale of each group, top-down."""
        scales = reversed(range(self.num_scales))
        return tuple(scale for scale in scales for _ in range(self.groups[scale]))

    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(h, w, z) of each group, top-down."""
        return tuple(
            (self.size(scale), self.size(scale), self.latent_channels)
            for scale in self.scale_of_group()
        )

    @property
    def num_latents(self) -> int:
        """The number of latent variables of one image, over all groups."""
        return sum(map(math.prod, self.latent_shapes()))

    def split_latents(self, flat: jax.Array) -> list[jax.Array]:
        """Splits (B, num_latents) into one (B, h, w, z) array per group, top-down."""
        shapes = self.latent_shapes()
        ends = list(accumulate(map(math.prod, shapes)))
        parts = jnp.split(flat, ends[:-1], axis=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
