"""The NVAE: bottom-up tower, top-down tower with or without posterior, pre- and postprocessing."""

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
    """The output of a pass with posterior, per example and per group.

    Attributes:
      logits: (B, H, W, params), the likelihood's parameters.
      kl: (B, groups) in nats, top-down.
      log_q: (B,) in nats, log q(z | x) of the drawn z.
      log_p: (B,) in nats, log p(z) of the drawn z.
      kl_per_channel: (groups, z) in nats, averaged over the batch.
      latents: a tuple with one (B, h, w, z) array per group, top-down.
    """

    logits: jax.Array  # (B, H, W, params)
    kl: jax.Array  # (B, groups)
    log_q: jax.Array  # (B,)
    log_p: jax.Array  # (B,)
    kl_per_channel: jax.Array  # (groups, z)
    latents: tuple[jax.Array, ...]  # (B, h, w, z) each


@struct.dataclass
class Draw:
    """The output of a pass with a source for each group; tuples have one entry per group."""

    logits: jax.Array  # (B, H, W, params), the likelihood's parameters
    latents: tuple[jax.Array, ...]  # (B, h, w, z) each
    prior: tuple[Normal, ...]  # (B, h, w, z) each, given the coarser groups
    posterior: tuple[Normal | None, ...]  # likewise, before the flows; None without features


class NVAE(nn.Module):
    """The whole model (paper, section 3).

    Attributes:
      hierarchy: scales, groups and resolutions.
      output_channels: number of the likelihood's parameters per pixel.
      encoder_width: number of channels of the stem.
      decoder_width: number of channels of the top-down tower at the image's resolution.
      preprocess_cells: cells per block of preprocessing.
      postprocess_cells: cells per block of postprocessing.
      encoder_cells_per_group: cells per group in the bottom-up tower.
      decoder_cells_per_group: cells per group in the top-down tower.
      encoder_cell: name in `cells.BODIES` of the bottom-up cells.
      decoder_cell: name in `cells.BODIES` of the top-down cells.
      squeeze_excitation: whether cells use squeeze and excitation.
      residual_posterior: whether the posterior's parameters are relative to the prior's.
      num_flows: pairs of flow steps per group.
      unroll: groups per iteration of the loop over a scale's groups; a large number unrolls them.
      remat: what the backward pass recomputes, one of `remat.POLICIES`.
      dtype: dtype of activations and convolutions; parameters and statistics stay float32.
      precision: precision of all products, as in `lax.dot`.
      ops: the operations to use.
      bn_momentum: weight of a batch in the running statistics.
      norm_groups: number of parts of a batch that batch norm normalises separately; see
        `BatchNorm`.
      conv: factory of convolutions; `kernels` and `folding` replace it by a simpler one.
      norm: factory of batch norms, likewise.
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
        """Initialises the variables as a training run does, in seconds; see `initialize`.

        Args:
          rngs: a PRNG key, or {"params": key}.
          x: (B, H, W, C) in [0, 1]; values and B matter only if `needs_data_init`.
          *args: arguments of `__call__`, which do not affect the variables.
          **kwargs: likewise. With other arguments (such as `method`) Flax's own `init` runs, which
            takes minutes.

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
        """Whether `init` needs a real batch, because cells without batch norm are initialised from
        data."""
        return "residual_elu" in (self.encoder_cell, self.decoder_cell)

    def __call__(
        self, x: jax.Array, train: bool = False, noise: Sequence[jax.Array] | None = None
    ) -> Output:
        """Draws z from the posterior given images and decodes it.

        Args:
          x: (B, H, W, C) in [0, 1].
          train: whether batch norm uses batch statistics and, if `batch_stats` is mutable, updates
            the running statistics.
          noise: a list with one standard normal (B, h, w, z) array per group, top-down; None draws
            noise from the rng stream `latent`.

        Returns:
          `Output`.
        """
        return self.decode(self.encode(x, train), train, noise)

    def encode(self, x: jax.Array, train: bool = False) -> tuple[list[jax.Array], ...]:
        """Computes the bottom-up feature maps of `x` (B, H, W, C) in [0, 1] for `decode`.

        Returns:
          a tuple with a list for each scale, coarsest first, with one (B, h, w, C) array per group.
        """
        size = self.hierarchy.image_size
        checks.array("images", x, ("B", size, size, "C"), float)
        return self.bottom_up(self.preprocess(self.stem(2.0 * x - 1.0), train), train)

    def decode(
        self,
        features: Sequence[Sequence[jax.Array]],
        train: bool = False,
        noise: Sequence[jax.Array] | None = None,
    ) -> Output:
        """Draws z from the posterior given the features from `encode`, and decodes it to an
        `Output`; for `train` and `noise` see `__call__`."""
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
        """Draws from the prior and returns the likelihood's parameters (B, H, W, params).

        Args:
          num: number of images; required without noise.
          noise: a list with one standard normal (B, h, w, z) array per group, top-down; None draws
            noise from the rng stream `latent`.
          temperature: factor of the prior's standard deviation; a scalar, or one per group.
          train: whether batch norm uses batch statistics.

        Raises:
          ValueError: if there is neither `num` nor `noise`.
        """
        if noise is None and num is None:
            raise ValueError("sample_logits needs num (of images) or noise (one array per group)")
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
        """Draws each group from a source of its own and decodes, for example for partial
        reconstructions.

        Args:
          noise: a list with one (B, h, w, z) array per group, top-down: standard normal noise, or z
            itself if the group is GIVEN.
          source: (groups,), each `latents.PRIOR`, `POSTERIOR` or `GIVEN`, or a number between the
            first two, which mixes both draws; can be traced.
          temperature: factor of the standard deviation of all draws; a scalar, or one per group.
          features: the features from `encode`; None if no group comes from the posterior.

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
            # All groups share one draw, because each call of the generator takes long to compile.
            flat = jax.random.normal(self.make_rng("latent"), (batch, self.hierarchy.num_latents))
            return self.hierarchy.split_latents(flat)
        given = [tuple(n.shape) for n in noise]
        if [s[1:] for s in given] != [s[1:] for s in shapes]:
            raise ValueError(f"noise has shapes {given}, but the latent groups have {shapes}")
        for group, value in enumerate(noise):
            checks.array(
                f"noise of group {group}", value, (len(noise[0]), *shapes[group][1:]), float
            )
        return list(noise)
