"""The two ways to draw images given what is known of them: mixed latents, and optimised ones."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nvae_jax.build import Experiment
from nvae_jax.models.latents import POSTERIOR
from nvae_jax.noise import image_keys, latent_noise

LARGEST_START = 3.0  # of noise that optimisation starts from
FIRST_SCALE = 0.1  # of the noise around it


class Restorer:
    """The compiled methods of one model.

    Each takes a batch: `observed`, an `Observed`; `start` (B, H, W, C), first guesses; `index`
    (B,), the images' numbers, on which and on the key the draws depend. It gives images (B,
    samples, H, W, C) in [0, 1], without padding.
    """

    def __init__(self, experiment: Experiment):
        self._model, self._spec = experiment.model, experiment.data
        self._likelihood = experiment.likelihood
        self.mix = jax.jit(self._mix)
        self.optimize = jax.jit(self._optimize)

    def _mix(self, variables, key, batch, *, spread, steps, shares, temperatures, trust):
        """Encodes the image, mixes z of each group with the prior's, decodes, puts in what is
        known, and starts again: as Prost et al. ("Inverse problem regularization with hierarchical
        variational autoencoders", ICCV 2023) alternate between z and x.

        Args:
          variables: the model's.
          key: of the draws.
          batch: see above.
          spread: (samples,), that multiplies the temperatures of each sample.
          steps: rounds.
          shares: (groups,), of the posterior in z.
          temperatures: (groups,), of both draws.
          trust: see `Observed.restore`.
        """
        apply = partial(self._model.apply, variables)

        def one_round(sample, factor, number, images):
            keys = jax.random.fold_in(jax.random.fold_in(key, sample), number)
            keys = image_keys(keys, batch["index"])
            features = apply(self._to_model(images, keys), method="encode")
            noise = latent_noise(self._model, keys)
            draw: Any = apply(noise, shares, factor * temperatures, features, method="compose")
            return batch["observed"].restore(self._likelihood(draw.logits), trust)

        def one_sample(sample):
            return jax.lax.fori_loop(0, steps, partial(one_round, *sample), batch["start"])

        return jnp.moveaxis(jax.lax.map(one_sample, _numbered(spread)), 0, 1)

    def _optimize(self, variables, key, batch, *, spread, steps, learning_rate):
        """Fits a Gaussian q to the posterior of the prior's noise given what is known, y, and draws
        from it: Adam maximises E_q[log p(y | z)] - KL(q || p), in which the decoder makes an image
        of standard normal noise. The encoder only says where to start.

        Args:
          variables: the model's.
          key: of the draws.
          batch: see above.
          spread: (samples,), that multiplies q's scale for each sample.
          steps: of Adam.
          learning_rate: its first; a cosine takes it to 0.
        """
        keys = image_keys(key, batch["index"])

        def decode(q, keys, factor=1.0):
            draws = latent_noise(self._model, keys)
            pairs = zip(q["mean"], q["log_scale"], draws, strict=True)
            noise = [m + factor * jnp.exp(s) * n for m, s, n in pairs]
            return self._likelihood(
                self._model.apply(variables, noise=noise, method="sample_logits")
            )

        def loss(q, keys):
            pairs = zip(q["mean"], q["log_scale"], strict=True)
            kl = [0.5 * (m**2 + jnp.exp(2 * s) - 1) - s for m, s in pairs]
            return sum(k.sum() for k in kl) - batch["observed"].log_prob(decode(q, keys)).sum()

        def step(number, carry):
            q, state = carry
            gradient = jax.grad(loss)(q, _fold(keys, number))
            update, state = optimizer.update(gradient, state)
            return optax.apply_updates(q, update), state

        def one_sample(sample):
            drawn = decode(q, _fold(keys, steps + sample[0]), sample[1])
            return batch["observed"].restore(drawn)

        def cosine(number):  # not optax's, for which `steps` would have to be static
            return learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * number / steps))

        optimizer = optax.adam(cosine)
        q = self._start(variables, self._to_model(batch["start"], keys))
        q, _ = jax.lax.fori_loop(0, steps, step, (q, optimizer.init(q)))
        return jnp.moveaxis(jax.lax.map(one_sample, _numbered(spread)), 0, 1)

    def _start(self, variables, images):
        """q around the noise that the encoder says makes `images`."""
        apply = partial(self._model.apply, variables)
        zeros = [jnp.zeros((len(images), *shape)) for shape in self._model.latent_shapes()]
        sources = jnp.full(len(zeros), POSTERIOR)
        features = apply(images, method="encode")
        draw: Any = apply(zeros, sources, 1.0, features, method="compose")
        pairs = zip(draw.latents, draw.prior, strict=True)
        means = [(z - p.mean) / p.scale for z, p in pairs]
        means = [jnp.clip(m, -LARGEST_START, LARGEST_START) for m in means]
        return {"mean": means, "log_scale": [jnp.full_like(m, jnp.log(FIRST_SCALE)) for m in means]}

    def _to_model(self, images, keys):
        """Padded, and of a model of binary images drawn from Bernoulli(value), as its data are."""
        if self._spec.binarize:
            draw = jax.vmap(jax.random.bernoulli)
            images = draw(_fold(keys, 0), images).astype(jnp.float32)
        edge = (self._spec.padding, self._spec.padding)
        return jnp.pad(images, ((0, 0), edge, edge, (0, 0)))


def _numbered(values):
    return jnp.arange(len(values)), values


def _fold(keys, number):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
