"""A latent group: prior, residual posterior, flows, and the update of the top-down state."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from nvae_jax.distributions.normal import Normal
from nvae_jax.models.cells import Cell
from nvae_jax.models.flows import FlowPair
from nvae_jax.models.layers import Conv

# Sources of a group's z in a pass that specifies one for each group. A number between the first two
# mixes their draws: 0.3 is 0.7 times the prior's draw plus 0.3 times the posterior's.
PRIOR, POSTERIOR, GIVEN = 0, 1, 2


@struct.dataclass
class GroupTerms:
    """The z of one group and its terms of the ELBO.

    Without a posterior there is only `z`. A pass that specifies a source for each group has no
    ELBO terms, but the distributions.
    """

    z: jax.Array  # (B, h, w, z), after the flows
    kl: Any = None  # (B, z) nats, summed over pixels
    log_q: Any = None  # (B,) nats
    log_p: Any = None  # (B,) nats
    prior: Any = None  # Normal, (B, h, w, z)
    posterior: Any = None  # Normal, (B, h, w, z), before the flows


class LatentGroup(nn.Module):
    """One group of the top-down network (paper, sections 2 and 3.2).

    Attributes:
      width: number of channels of the top-down state.
      encoder_width: number of channels of the bottom-up feature map.
      latent_channels: number of channels of z.
      num_cells: number of cells before the prior.
      num_flows: number of flow pairs of the posterior.
      residual_posterior: whether the posterior's parameters are relative to the prior's.
      first: whether this is the coarsest group, with a standard normal prior, no cells, and a
        posterior that depends on the feature map only.
      use_state: whether the new state depends on the old state and z, or on z only.
      cell: factory of cells.
      conv: factory of convolutions.
    """

    width: int
    encoder_width: int
    latent_channels: int
    num_cells: int
    num_flows: int = 0
    residual_posterior: bool = True
    first: bool = False
    use_state: bool = True
    cell: Callable[..., nn.Module] = Cell
    conv: Callable[..., nn.Module] = Conv

    @nn.compact
    def __call__(
        self,
        state: jax.Array,
        inputs: tuple[jax.Array | None, jax.Array, jax.Array, jax.Array | None],
        train: bool,
    ) -> tuple[jax.Array, GroupTerms]:
        """Draws z and updates the state.

        Args:
          state: (B, h, w, width).
          inputs: a tuple of the bottom-up feature map (B, h, w, encoder_width), or None to draw
            from the prior; standard normal noise (B, h, w, z); the prior's temperature, a scalar;
            and None or the source of z, a scalar. With a source, the temperature applies to prior
            and posterior, and the noise of a GIVEN group is z itself.
          train: whether batch norm uses batch statistics.

        Returns:
          the new state, and `GroupTerms`.
        """
        feature, noise, temperature, source = inputs
        state, prior_params = self._prior(state, noise, train)
        prior, posterior = Normal.from_conv(prior_params), None
        if feature is not None:
            posterior = Normal.from_conv(self._posterior(state, feature, prior_params))
        if source is not None:
            z = self._choose(posterior, prior, noise, temperature, source)
            terms = GroupTerms(z=z, prior=prior, posterior=posterior)
        elif posterior is None:
            terms = GroupTerms(z=prior.sample(noise, temperature))
        else:
            terms = self._infer(posterior, prior, noise)
        return self._merge(state, terms.z), terms

    def _prior(self, state, noise, train):
        if self.first:
            zeros = jnp.zeros((*noise.shape[:-1], 2 * self.latent_channels))
            return state, zeros
        for i in range(self.num_cells):
            state = self.cell(self.width, name=f"cell_{i}")(state, train)
        head = self.conv(2 * self.latent_channels, 1, name="prior_head")
        return state, head(nn.elu(state)).astype(jnp.float32)

    def _posterior(self, state, feature, prior_params):
        if not self.first:
            feature = feature + self.conv(self.encoder_width, 1, name="combine")(state)
        head = self.conv(2 * self.latent_channels, 3, name="posterior_head")
        params = head(feature).astype(jnp.float32)
        return params + prior_params if self.residual_posterior else params

    def _infer(self, posterior, prior, noise):
        z = posterior.sample(noise)
        log_q = posterior.log_prob(z)
        z = self._flow(z)
        log_p = prior.log_prob(z)
        # With flows the KL has no closed form and is estimated from one sample.
        kl = log_q - log_p if self.num_flows else posterior.kl(prior)
        pixels = (1, 2)
        return GroupTerms(
            z=z, kl=kl.sum(pixels), log_q=log_q.sum((1, 2, 3)), log_p=log_p.sum((1, 2, 3))
        )

    def _flow(self, z):
        for i in range(self.num_flows):
            z = FlowPair(conv=self.conv, name=f"flow_{i}")(z)
        return z

    def _choose(self, posterior, prior, noise, temperature, source):
        z = prior.sample(noise, temperature)
        if posterior is not None:
            inferred = self._flow(posterior.sample(noise, temperature))
            z = jnp.where(source == POSTERIOR, inferred, z + source * (inferred - z))
        return jnp.where(source == GIVEN, noise, z)

    def _merge(self, state, z):
        z = z.astype(state.dtype)
        inputs = jnp.concatenate([state, z], axis=-1) if self.use_state else z
        return self.conv(self.width, 1, name="merge")(inputs)
