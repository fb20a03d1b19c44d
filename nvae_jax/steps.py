"""The pure train, evaluation and sampling steps: state and arrays in, arrays out."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.typing import VariableDict
from jax.sharding import Mesh
from jax.typing import ArrayLike

from nvae_jax import objective as obj
from nvae_jax import regularizers, sharding
from nvae_jax.likelihoods import Likelihood
from nvae_jax.models.kernels import effective_kernels, with_kernels
from nvae_jax.models.layers import PlainConv
from nvae_jax.models.nvae import NVAE
from nvae_jax.noise import image_keys, latent_noise
from nvae_jax.optim import Optimizer

PIXELS = 2**32 - 1  # no image's number: the stream of keys that pixels are drawn with


def make_train_step(
    model: NVAE,
    likelihood: Likelihood,
    objective: obj.ObjectiveSettings,
    optimizer: Optimizer,
    learning_rate: optax.Schedule,
    *,
    accumulation_steps: int = 1,
    ema_decay: float = 0.0,
    mesh: Mesh | None = None,
) -> Callable[..., Any]:
    """Builds the update.

    Args:
      model: an `NVAE`.
      likelihood: maps logits to an image distribution.
      objective: `ObjectiveSettings`.
      optimizer: an `optim.Optimizer`.
      learning_rate: maps a step to its rate, for the record.
      accumulation_steps: micro-batches that a batch is split into; the gradient is the mean of
        theirs. Batch norm and the balance of the KL see one micro-batch at a time, which must be
        large enough for both; the running statistics are updated by each in turn.
      ema_decay: of the moving average of the variables; 0: none is kept.
      mesh: of the devices that share kernels; None: each has all, if there is more than one.

    Returns:
      (state, images (B, H, W, C) in [0, 1]) -> (new state, metrics). A loss or gradient that is
      not finite leaves everything but the counters as it was.
    """
    alpha = obj.balance_alpha(model.hierarchy)

    def train_step(state, images):
        beta = obj.kl_weight(state.step, objective)

        def gradients(batch_stats, spectral, images, key):
            def loss_fn(params):
                return training_loss(
                    model,
                    likelihood,
                    {"params": params, "batch_stats": batch_stats},
                    images,
                    spectral=spectral,
                    rounds=regularizers.ROUNDS,
                    alpha=alpha,
                    beta=beta,
                    weight=obj.regularizer_weight(beta, objective),
                    mesh=mesh,
                    rngs={"latent": key},
                )

            grads, aux = jax.grad(loss_fn, has_aux=True)(state.params)
            return sharding.constrain(mesh, grads) if mesh else grads, aux

        if accumulation_steps > 1:
            gradients = _accumulated(gradients, accumulation_steps)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        grads, (metrics, batch_stats, spectral) = gradients(
            state.batch_stats, state.spectral, images, key
        )
        grad_norm = model.ops.global_norm(grads)
        finite = jnp.isfinite(metrics["loss"] + grad_norm)
        params, opt_state = model.ops.optimizer_step(
            optimizer, grads, state.opt_state, state.params, finite
        )
        # The optimiser has chosen between the old arrays and the new ones already.
        done = {"params": params, "opt_state": opt_state}
        old = state.replace(params=(), opt_state=())
        updated = old.replace(batch_stats=batch_stats, spectral=spectral)
        if ema_decay:
            average = _averaged(updated.replace(params=params), ema_decay)
            updated = updated.replace(average=average)
        updated = _unless_nonfinite(updated, old, finite).replace(**done)
        metrics.update(
            beta=beta,
            gradient_norm=grad_norm,
            learning_rate=learning_rate(state.step),
            nonfinite_steps=updated.nonfinite_steps,
        )
        if clip := optimizer.settings.gradient_clip:
            metrics["clipped_fraction"] = (finite & (grad_norm > clip)).mean()
        return updated, metrics

    return train_step


def _accumulated(gradients, parts):
    """`gradients` of a batch as the mean over its micro-batches, computed one after the other."""

    def accumulate(batch_stats, spectral, images, key):
        # Every part takes every n-th example, and so the same number from each device.
        images = jnp.moveaxis(images.reshape(-1, parts, *images.shape[1:]), 1, 0)
        keys = jax.random.split(key, parts)

        def add(carry, part):
            total, batch_stats, spectral = carry
            grads, (metrics, batch_stats, spectral) = gradients(batch_stats, spectral, *part)
            total = jax.tree.map(lambda t, g: t + g / parts, total, grads)
            return (total, batch_stats, spectral), metrics

        shapes = jax.eval_shape(gradients, batch_stats, spectral, images[0], key)[0]
        zeros = jax.tree.map(lambda g: jnp.zeros(g.shape, g.dtype), shapes)
        carry, metrics = jax.lax.scan(add, (zeros, batch_stats, spectral), (images, keys))
        grads, batch_stats, spectral = carry
        metrics = jax.tree.map(lambda m: m.mean(0), metrics)
        return grads, (metrics, batch_stats, spectral)

    return accumulate


def _averaged(state, decay):
    """The moving average of the variables after an update. The first steps weigh less, so that it
    forgets the initial values soon."""
    decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update(state.trained, state.average, 1.0 - decay)


def _unless_nonfinite(updated, state, finite):
    """`updated`, or the old state where not `finite`; counts the steps either way."""
    return optax.tree.where(finite, updated, state).replace(
        step=state.step + 1,
        nonfinite_steps=jnp.where(finite, 0, state.nonfinite_steps + 1),
    )


def training_loss(
    model: NVAE,
    likelihood: Likelihood,
    variables: VariableDict,
    images: jax.Array,
    *,
    spectral: Mapping[str, jax.Array],
    rounds: int,
    alpha: ArrayLike,
    beta: jax.Array,
    weight: ArrayLike,
    mesh: Mesh | None = None,
    **apply_kwargs: Any,
) -> tuple[jax.Array, tuple[dict[str, Any], Any, Any]]:
    """The objective on one batch (paper, equation 1, section 3.2 and appendix A).

    Args:
      spectral: power-iteration vectors.
      rounds: of power iteration.
      alpha: (groups,), from `objective.balance_alpha`.
      beta: KL weight.
      weight: λ of the regularisers.
      mesh: as in `make_train_step`.
      **apply_kwargs: `noise` or `rngs` of the model.

    Returns:
      the loss, and (metrics in nats, new batch_stats, new spectral vectors).
    """
    kernels = effective_kernels(model, variables["params"])
    spectral_norm, kernels, spectral = model.ops.spectral_penalty(kernels, spectral, rounds)
    plain, params = with_kernels(model, variables["params"], kernels)
    if mesh:
        apply_kernel = partial(sharding.convolve_gathered, mesh)
        plain = plain.clone(conv=partial(PlainConv, apply_kernel=apply_kernel))
        params = sharding.constrain(mesh, params)
    out, mutated = plain.apply(
        {**variables, "params": params}, images, train=True, mutable=["batch_stats"], **apply_kwargs
    )
    reconstruction = -likelihood(out.logits).log_prob(images)
    weighted_kl, gamma = obj.balanced_kl(out.kl, alpha, beta)
    bn = regularizers.batch_norm_penalty(variables["params"])
    loss = (reconstruction + weighted_kl).mean() + weight * (spectral_norm + bn)
    metrics = {
        "loss": loss,
        "nelbo": (reconstruction + out.kl.sum(1)).mean(),
        "reconstruction": reconstruction.mean(),
        "kl": out.kl.sum(1).mean(),
        "kl_group": out.kl.mean(0),
        "active_units": obj.active_units(out.kl_per_channel),
        "spectral": spectral_norm,
        "bn": bn,
        "balance": gamma,
    }
    batch_stats = _over_norm_groups(mutated.get("batch_stats", {}), variables["batch_stats"])
    return loss, (metrics, batch_stats, spectral)


def _over_norm_groups(updated, running):
    """Running statistics as the mean of those of the batch's parts, where these are apart."""
    return jax.tree.map(lambda u, r: u.mean(-2) if u.ndim > r.ndim else u, updated, running)


def make_encode_step(model: NVAE) -> Callable[..., Any]:
    """(variables, images (B, H, W, C)) -> the bottom-up features, computed once per image."""
    return lambda variables, images: model.apply(variables, images, method="encode")


def bound_terms(likelihood: Likelihood, out: Any, images: jax.Array) -> dict[str, jax.Array]:
    """The terms of the bound for one posterior draw (paper, equation 1), in nats.

    Args:
      likelihood: maps logits to an image distribution.
      out: the model's `Output` for `images` (B, H, W, C) in [0, 1].

    Returns:
      a dict of `reconstruction` = -log p(x | z) (B,), `kl` (B, groups), and
      `log_weight` = log p(x, z) / q(z | x) (B,), for importance weighting.
    """
    log_likelihood = likelihood(out.logits).log_prob(images)
    log_weight = log_likelihood + out.log_p - out.log_q
    return {"reconstruction": -log_likelihood, "kl": out.kl, "log_weight": log_weight}


def make_bound_step(model: NVAE, likelihood: Likelihood) -> Callable[..., Any]:
    """(variables, features, images, key, image numbers (B,)) -> `bound_terms` of one posterior
    draw. That of image i depends on the key and its number alone."""

    def bound_step(variables, features, images, key, indices):
        noise = latent_noise(model, image_keys(key, indices))
        out = model.apply(variables, features, noise=noise, method="decode")
        return bound_terms(likelihood, out, images)

    return bound_step


def make_sample_step(
    model: NVAE, likelihood: Likelihood, *, draw_pixels: bool = False
) -> Callable[..., Any]:
    """(variables, key, image numbers (B,), temperature () or (groups,), the decoder's temperature
    ()) -> images (B, H, W, C) in [0, 1] drawn from the prior: the decoder's means, or with
    `draw_pixels` draws from its distribution. Image i depends on the key and its number alone."""

    def sample_step(variables, key, indices, temperature, decoder_temperature=1.0):
        noise = latent_noise(model, image_keys(key, indices))
        logits: Any = model.apply(
            variables, noise=noise, temperature=temperature, method="sample_logits"
        )
        if not draw_pixels:
            return likelihood(logits).mean()

        def draw(logits, key):
            return likelihood(logits[None]).sample(key, decoder_temperature)[0]

        pixel_keys = image_keys(jax.random.fold_in(key, PIXELS), indices)
        return jax.vmap(draw)(logits, pixel_keys)

    return sample_step


def make_reconstruct_step(model: NVAE, likelihood: Likelihood) -> Callable[..., Any]:
    """(variables, images, key) -> the decoder's mean images for one posterior draw each."""

    def reconstruct_step(variables, images, key):
        out: Any = model.apply(variables, images, rngs={"latent": key})
        return likelihood(out.logits).mean()

    return reconstruct_step
