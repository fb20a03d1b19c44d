"""The two methods that sample images given their known part: mixed and optimised latents."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nvae_jax.experiment import Experiment
from nvae_jax.models.latents import POSTERIOR
from nvae_jax.noise import image_keys, latent_noise

MAX_START = 3.0  # limit on the mean that optimisation starts from
INITIAL_SCALE = 0.1  # standard deviation that optimisation starts from


class Restorer:
    """The compiled methods for one model.

    Each takes a batch with `observed`, an `Observed`; `start` (B, H, W, C), first guesses; and
    `index` (B,), the numbers of the images. The draws depend on these numbers and on the key. It
    returns images (B, samples, H, W, C) in [0, 1], without padding.
    """

    def __init__(self, experiment: Experiment):
        self._model, self._spec = experiment.model, experiment.data
        self._likelihood = experiment.likelihood
        self.mix = jax.jit(self._mix)
        self.optimize = jax.jit(self._optimize)

    def _mix(self, variables, key, batch, *, spread, steps, shares, temperatures, trust):
        """Repeats: encodes the image, mixes the latents z of each group with draws from the prior,
        decodes them, and inserts the known part. Prost et al. ("Inverse problem regularization
        with hierarchical variational autoencoders", ICCV 2023) alternate in this way between z and
        x.

        Args:
          variables: of the model.
          key: of the draws.
          batch: see the class.
          spread: (samples,), a factor for the temperatures of each sample.
          steps: number of repetitions.
          shares: (groups,), the weight of the posterior in z.
          temperatures: (groups,), for the draws from posterior and prior.
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
        """Fits a Gaussian q to the posterior of the prior's noise z given the known part y, and
        samples from it. Adam maximises E_q[log p(y | z)] - KL(q || p), where p is standard normal
        and the decoder maps z to an image. The encoder only provides the starting point.

        Args:
          variables: of the model.
          key: of the draws.
          batch: see the class.
          spread: (samples,), a factor for the scale of q for each sample.
          steps: number of steps of Adam.
          learning_rate: initial learning rate; it decreases to 0 along a cosine.
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

        def cosine(number):  # optax's would need a static `steps`
            return learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * number / steps))

        optimizer = optax.adam(cosine)
        q = self._start(variables, self._to_model(batch["start"], keys))
        q, _ = jax.lax.fori_loop(0, steps, step, (q, optimizer.init(q)))
        return jnp.moveaxis(jax.lax.map(one_sample, _numbered(spread)), 0, 1)

    def _start(self, variables, images):
        """The initial q: its mean is the noise of which, by the encoder, `images` are decoded."""
        apply = partial(self._model.apply, variables)
        zeros = [jnp.zeros((len(images), *shape)) for shape in self._model.latent_shapes()]
        sources = jnp.full(len(zeros), POSTERIOR)
        features = apply(images, method="encode")
        draw: Any = apply(zeros, sources, 1.0, features, method="compose")
        pairs = zip(draw.latents, draw.prior, strict=True)
        means = [(z - p.mean) / p.scale for z, p in pairs]
        means = [jnp.clip(m, -MAX_START, MAX_START) for m in means]
        scales = [jnp.full_like(m, jnp.log(INITIAL_SCALE)) for m in means]
        return {"mean": means, "log_scale": scales}

    def _to_model(self, images, keys):
        """Pads images; for a model of binary images, first draws each pixel from Bernoulli."""
        if self._spec.binarize:
            draw = jax.vmap(jax.random.bernoulli)
            images = draw(_fold(keys, 0), images).astype(jnp.float32)
        edge = (self._spec.padding, self._spec.padding)
        return jnp.pad(images, ((0, 0), edge, edge, (0, 0)))


def _numbered(values):
    return jnp.arange(len(values)), values


def _fold(keys, number):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
