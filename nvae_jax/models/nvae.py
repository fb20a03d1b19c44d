"""NVAE: bottom-up tower, ONE top-down pass (the posterior is optional), pre- and postprocessing."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.core import FrozenDict
from flax.typing import VariableDict
from jax.typing import ArrayLike

from nvae_jax import checks
from nvae_jax.distributions.normal import Normal
from nvae_jax.models import initialize
from nvae_jax.models.bottom_up import BottomUp
from nvae_jax.models.cells import PROCESS_EXPANSION, Cell
from nvae_jax.models.groups import run_groups
from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.models.layers import BatchNorm, Conv
from nvae_jax.models.processing import Postprocess, Preprocess
from nvae_jax.models.remat import remat_cell
from nvae_jax.models.top_down import TopDown
from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import Portable


@struct.dataclass
class Output:
    """What a pass with posterior gives: per example and per group, nothing reduced but pixels."""

    logits: jax.Array  # (B, H, W, params), the likelihood's parameters
    kl: jax.Array  # (B, groups) nats, top-down
    log_q: jax.Array  # (B,) nats, log q(z | x) of the drawn z
    log_p: jax.Array  # (B,) nats, log p(z) of the drawn z
    kl_per_channel: jax.Array  # (groups, z) nats, mean over the batch
    latents: tuple[jax.Array, ...]  # one (B, h, w, z) a group, top-down


@struct.dataclass
class Draw:
    """What a pass gives whose groups each name their source; tuples have an entry a group."""

    logits: jax.Array  # (B, H, W, params), the likelihood's parameters
    latents: tuple[jax.Array, ...]  # (B, h, w, z)
    prior: tuple[Normal, ...]  # of (B, h, w, z), given the groups above
    posterior: tuple[Normal | None, ...]  # the same, ahead of the flows; None without features


class NVAE(nn.Module):
    """The whole model (paper, section 3).

    Attributes:
      hierarchy: scales, groups, resolutions.
      output_channels: parameters per pixel of the likelihood.
      encoder_cell, decoder_cell: names in `cells.BODIES`.
      num_flows: pairs of flow steps per group.
      unroll: groups of a scale that one loop iteration computes; a large number unrolls them all.
      remat: what the backward pass computes again, one of `remat.POLICIES`.
      dtype: of activations and convolutions; parameters and statistics stay float32.
      precision: of all products, as in `lax.dot`.
      ops: what the parts are computed with.
      bn_momentum: weight of a batch in the running statistics.
      norm_groups: parts of a batch with batch-norm statistics of their own; see `BatchNorm`.
      conv, norm: factories of the parts; `kernels` and `folding` put plainer ones in their place.
    """

    hierarchy: Hierarchy
    output_channels: int
    encoder_width: int
    decoder_width: int
    preprocess_cells: int = 3
    postprocess_cells: int = 3
    encoder_cells_per_group: int = 2
    decoder_cells_per_group: int = 2
    encoder_cell: str = "residual"
    decoder_cell: str = "inverted_residual"
    squeeze_excitation: bool = True
    residual_posterior: bool = True
    num_flows: int = 0
    unroll: int = 1
    remat: str = "none"
    dtype: Any = jnp.float32
    precision: Any = None
    ops: Ops = Portable()
    bn_momentum: float = 0.05
    norm_groups: int = 1
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm

    def setup(self) -> None:
        conv = partial(
            self.conv,
            dtype=self.dtype,
            precision=self.precision,
            ops=self.ops,
        )
        norm = partial(
            self.norm,
            dtype=self.dtype,
            momentum=self.bn_momentum,
            groups=self.norm_groups,
            ops=self.ops,
        )
        cell = partial(
            Cell,
            squeeze_excitation=self.squeeze_excitation,
            conv=conv,
            norm=norm,
            precision=self.precision,
            ops=self.ops,
        )
        groups = partial(
            run_groups,
            unroll=self.unroll,
            remat=self.remat,
            ops=self.ops,
        )
        encoder_cell = partial(cell, kind=self.encoder_cell)
        decoder_cell = partial(cell, kind=self.decoder_cell)
        process = partial(remat_cell, self.remat)
        blocks = self.hierarchy.process_blocks
        self.stem = conv(self.encoder_width, 3)
        self.preprocess = Preprocess(
            blocks,
            self.preprocess_cells,
            process(partial(encoder_cell, expansion=PROCESS_EXPANSION)),
        )
        self.bottom_up = BottomUp(
            self.hierarchy,
            self.encoder_width,
            self.encoder_cells_per_group,
            self.remat,
            groups,
            cell=encoder_cell,
            conv=conv,
        )
        self.top_down = TopDown(
            self.hierarchy,
            self.decoder_width,
            self.encoder_width,
            self.decoder_cells_per_group,
            self.num_flows,
            self.residual_posterior,
            self.remat,
            groups,
            cell=decoder_cell,
            conv=conv,
        )
        self.postprocess = Postprocess(
            blocks,
            self.postprocess_cells,
            process(partial(decoder_cell, expansion=PROCESS_EXPANSION)),
        )
        self.image_head = conv(self.output_channels, 3)

    @nn.nowrap
    def init(self, rngs: Any, x: jax.Array, *args: Any, **kwargs: Any) -> VariableDict | FrozenDict:
        """Fresh variables, those that a run begins with, in seconds; see `initialize`.

        Args:
          rngs: a PRNG key, or {"params": key}.
          x: (B, H, W, C) in [0, 1]; values and B matter only if `needs_data_init`.
          *args: as in `__call__`; no variable depends on them.
          **kwargs: the same. With others (such as `method`) Flax's own `init` runs, for minutes.

        Returns:
          {"params": ..., "batch_stats": ...}, float32.
        """
        if kwargs.keys() - {"train", "noise"}:
            return super().init(rngs, x, *args, **kwargs)
        key = rngs["params"] if isinstance(rngs, Mapping) else rngs
        return initialize.compiled(self, key, x)

    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(h, w, z) of each group, top-down."""
        return self.hierarchy.latent_shapes()

    @property
    def needs_data_init(self) -> bool:
        """Whether `init` must be given a real batch: cells without batch norm start from data."""
        return "residual_elu" in (self.encoder_cell, self.decoder_cell)

    def __call__(
        self, x: jax.Array, train: bool = False, noise: Sequence[jax.Array] | None = None
    ) -> Output:
        """Infers z from images and decodes it.

        Args:
          x: (B, H, W, C) in [0, 1].
          train: batch statistics (and their running update, if `batch_stats` is mutable).
          noise: one standard normal (B, h, w, z) array a group, top-down; None draws them from the
            rng stream `latent`.

        Returns:
          `Output`.
        """
        return self.decode(self.encode(x, train), train, noise)

    def encode(self, x: jax.Array, train: bool = False) -> tuple[list[jax.Array], ...]:
        """The bottom-up features of `x` (B, H, W, C) in [0, 1], for `decode`: of each scale,
        coarsest first, a list of (B, h, w, C), one a group."""
        size = self.hierarchy.image_size
        checks.array("images", x, ("B", size, size, "C"), float)
        return self.bottom_up(self.preprocess(self.stem(2.0 * x - 1.0), train), train)

    def decode(
        self,
        features: Sequence[Sequence[jax.Array]],
        train: bool = False,
        noise: Sequence[jax.Array] | None = None,
    ) -> Output:
        """Draws z from the posterior given `encode`'s features, and decodes it to an `Output`."""
        noise = self._noise(noise, features[0][0].shape[0])
        state, terms = self.top_down(features, noise, self._temperatures(1.0), train)
        kl = jnp.stack([t.kl for t in terms], axis=1)  # (B, groups, z)
        return Output(
            logits=self._image(state, train),
            kl=kl.sum(-1),
            log_q=jnp.asarray(sum(t.log_q for t in terms)),
            log_p=jnp.asarray(sum(t.log_p for t in terms)),
            kl_per_channel=kl.mean(0),
            latents=tuple(t.z for t in terms),
        )

    def sample_logits(
        self,
        num: int | None = None,
        noise: Sequence[jax.Array] | None = None,
        temperature: ArrayLike = 1.0,
        train: bool = False,
    ) -> jax.Array:
        """The likelihood's parameters (B, H, W, params) of a draw from the prior.

        Args:
          num: how many images, where no noise is given.
          noise: one standard normal (B, h, w, z) array a group, top-down.
          temperature: multiplies the prior's scale; a scalar, or one a group.
          train: use batch statistics.
        """
        if noise is None and num is None:
            raise ValueError("sample_logits needs num, how many images, or noise, an array a group")
        noise = self._noise(noise, num)
        state, _ = self.top_down(None, noise, self._temperatures(temperature), train)
        return self._image(state, train)

    def compose(
        self,
        noise: Sequence[jax.Array],
        source: ArrayLike,
        temperature: ArrayLike = 1.0,
        features: Sequence[Sequence[jax.Array]] | None = None,
    ) -> Draw:
        """Draws each group from its own source, and decodes: partial reconstructions, given z.

        Args:
          noise: one (B, h, w, z) array a group, top-down: standard normal, or where the group is
            GIVEN, z itself.
          source: (groups,) of `latents.PRIOR`, `POSTERIOR` and `GIVEN`, or of numbers between the
            first two, which mix both draws; may be traced.
          temperature: multiplies the scale that z is drawn with; a scalar, or one a group.
          features: what `encode` returns; None where no group comes from the posterior.

        Returns:
          `Draw`.
        """
        noise, source = self._noise(noise, None), jnp.asarray(source, jnp.float32)
        state, terms = self.top_down(
            features, noise, self._temperatures(temperature), False, source
        )
        return Draw(
            logits=self._image(state, False),
            latents=tuple(t.z for t in terms),
            prior=tuple(t.prior for t in terms),
            posterior=tuple(t.posterior for t in terms),
        )

    def _image(self, state, train):
        logits = self.image_head(nn.elu(self.postprocess(state, train)))
        return logits.astype(jnp.float32)

    def _temperatures(self, temperature):
        return jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), len(self.latent_shapes()))

    def _noise(self, noise, batch):
        shapes = [(batch, *shape) for shape in self.latent_shapes()]
        if noise is None:
            # One draw for all groups: each call of the generator takes long to compile.
            flat = jax.random.normal(self.make_rng("latent"), (batch, self.hierarchy.num_latents))
            return self.hierarchy.split_latents(flat)
        given = [tuple(n.shape) for n in noise]
        if [s[1:] for s in given] != [s[1:] for s in shapes]:
            raise ValueError(f"noise has shapes {given}, the latent groups want {shapes}")
        for group, value in enumerate(noise):
            checks.array(
                f"noise of group {group}", value, (len(noise[0]), *shapes[group][1:]), float
            )
        return list(noise)
