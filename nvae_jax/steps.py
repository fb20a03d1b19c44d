"""The pure train, evaluation and sampling steps: state and arrays in, arrays out."""

import jax
import jax.numpy as jnp
import optax

from nvae_jax import objective as obj
from nvae_jax import regularizers

ACTIVE_NATS = 0.1  # a latent channel with more KL than this is in use


def make_train_step(model, likelihood, objective, optimizer, learning_rate):
    """Builds the update.

    Args:
      model: an `NVAE`.
      likelihood: maps logits to an image distribution.
      objective: `ObjectiveSettings`.
      optimizer: an optax transformation.
      learning_rate: maps a step to its rate, for the record.

    Returns:
      (state, images (B, H, W, C) in [0, 1]) -> (new state, metrics). A loss or gradient that is
      not finite leaves everything but the counters as it was.
    """
    alpha = obj.balance_alpha(model.hierarchy)

    def train_step(state, images):
        beta = obj.kl_weight(state.step, objective)
        latent_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

        def loss_fn(params):
            return training_loss(
                model,
                likelihood,
                {"params": params, "batch_stats": state.batch_stats},
                images,
                spectral=state.spectral,
                rounds=jnp.where(state.step == 0, regularizers.FIRST_ROUNDS, regularizers.ROUNDS),
                alpha=alpha,
                beta=beta,
                weight=obj.regularizer_weight(beta, objective),
                rngs={"latent": latent_key},
            )

        grads, (metrics, batch_stats, spectral) = jax.grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        updated = state.replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            spectral=spectral,
        )
        updated = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        updated = updated.replace(
            step=state.step + 1,
            nonfinite_steps=jnp.where(finite, 0, state.nonfinite_steps + 1),
        )
        metrics.update(
            beta=beta,
            gradient_norm=grad_norm,
            learning_rate=learning_rate(state.step),
            nonfinite_steps=updated.nonfinite_steps,
        )
        return updated, metrics

    return train_step


def training_loss(
    model, likelihood, variables, images, *, spectral, rounds, alpha, beta, weight, **apply_kwargs
):
    """The objective on one batch (paper, equations 2 and 9).

    Args:
      spectral: power-iteration vectors.
      rounds: of power iteration.
      alpha: (groups,), from `objective.balance_alpha`.
      beta: KL weight.
      weight: λ of the regularisers.
      **apply_kwargs: `noise` or `rngs` of the model.

    Returns:
      the loss, and (metrics in nats, new batch_stats, new spectral vectors).
    """
    out, mutated = model.apply(
        variables, images, train=True, mutable=["batch_stats", "kernels"], **apply_kwargs
    )
    reconstruction = -likelihood(out.logits).log_prob(images)
    weighted_kl, gamma = obj.balanced_kl(out.kl, alpha, beta)
    spectral_norm, spectral = regularizers.spectral_penalty(mutated["kernels"], spectral, rounds)
    bn = regularizers.batch_norm_penalty(variables["params"])
    loss = (reconstruction + weighted_kl).mean() + weight * (spectral_norm + bn)
    metrics = {
        "loss": loss,
        "nelbo": (reconstruction + out.kl.sum(1)).mean(),
        "reconstruction": reconstruction.mean(),
        "kl": out.kl.sum(1).mean(),
        "kl_group": out.kl.mean(0),
        "active_units": (out.kl_per_channel > ACTIVE_NATS).sum(),
        "spectral": spectral_norm,
        "bn": bn,
        "balance": gamma,
    }
    return loss, (metrics, mutated.get("batch_stats", {}), spectral)


def make_encode_step(model):
    """(variables, images (B, H, W, C)) -> the bottom-up features, computed once per image."""
    return lambda variables, images: model.apply(variables, images, method="encode")


def make_bound_step(model, likelihood):
    """(variables, features, images, key) -> terms of one posterior draw, each (B,) nats, and the
    KL by group (B, groups): a dict of `reconstruction`, `kl`, `log_weight`."""

    def bound_step(variables, features, images, key):
        out = model.apply(variables, features, method="decode", rngs={"latent": key})
        log_likelihood = likelihood(out.logits).log_prob(images)
        return {
            "reconstruction": -log_likelihood,
            "kl": out.kl,
            "log_weight": log_likelihood + out.log_p - out.log_q,
        }

    return bound_step


def make_sample_step(model, likelihood, num, *, draw_pixels):
    """(variables, key, temperature) -> `num` images (num, H, W, C) in [0, 1] from the prior: the
    decoder's mean, or a draw from it."""

    def sample_step(variables, key, temperature):
        latent_key, pixel_key = jax.random.split(key)
        logits = model.apply(
            variables,
            num,
            temperature=temperature,
            method="sample_logits",
            rngs={"latent": latent_key},
        )
        images = likelihood(logits)
        return images.sample(pixel_key) if draw_pixels else images.mean()

    return sample_step


def make_reconstruct_step(model, likelihood):
    """(variables, images, key) -> the decoder's mean images for one posterior draw each."""

    def reconstruct_step(variables, images, key):
        out = model.apply(variables, images, rngs={"latent": key})
        return likelihood(out.logits).mean()

    return reconstruct_step
