"""The training, evaluation and sampling steps: pure functions of state and arrays."""

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

PIXELS = 2**32 - 1  # folded into a key for the draws of pixels; not the number of any image


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
    """Makes the training step: gradient, update of the parameters, and metrics.

    Args:
      model: an `NVAE`.
      likelihood: maps logits to an image distribution.
      objective: `ObjectiveSettings`.
      optimizer: an `optim.Optimizer`.
      learning_rate: maps a step to its learning rate, for the metrics.
      accumulation_steps: number of micro-batches that a batch is split into; their gradients are
        averaged. Batch norm and KL balancing see one micro-batch at a time, which must be large
        enough for both; the running statistics are updated after each micro-batch.
      ema_decay: decay of the EMA of the variables; 0 disables it.
      mesh: the mesh of devices that shard kernels; None if no kernels are sharded.

    Returns:
      (state, images (B, H, W, C) in [0, 1]) -> (new state, metrics). If the loss or the gradient is
      not finite, everything but the counters stays as it was.
    """
    compute_gradients = _make_gradients(model, likelihood, objective, accumulation_steps, mesh)

    def train_step(state, images):
        beta = obj.kl_weight(state.step, objective)
        grads, (metrics, batch_stats, spectral) = compute_gradients(state, images, beta)
        grad_norm = model.ops.global_norm(grads)
        finite = jnp.isfinite(metrics["loss"] + grad_norm)
        params, opt_state = model.ops.optimizer_step(
            optimizer, grads, state.opt_state, state.params, finite
        )
        # `optimizer_step` has already selected between its old and new arrays.
        selected = {"params": params, "opt_state": opt_state}
        old = state.replace(params=(), opt_state=())
        updated = old.replace(batch_stats=batch_stats, spectral=spectral)
        if ema_decay:
            average = _update_average(updated.replace(params=params), ema_decay)
            updated = updated.replace(average=average)
        updated = _unless_nonfinite(updated, old, finite).replace(**selected)
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


def _make_gradients(model, likelihood, objective, accumulation_steps, mesh):
    """Makes (state, images, β) -> (gradients, (metrics, batch_stats, spectral vectors))."""
    alpha = obj.balance_alpha(model.hierarchy)

    def compute_gradients(state, images, beta):
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
            gradients = _accumulate(gradients, accumulation_steps)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        return gradients(state.batch_stats, state.spectral, images, key)

    return compute_gradients


def _accumulate(gradients, micro_batches):
    """Turns `gradients` into the mean over the micro-batches of a batch, computed in sequence."""

    def accumulated_gradients(batch_stats, spectral, images, key):
        # Each micro-batch has every n-th example, so each device contributes equally many.
        images = jnp.moveaxis(images.reshape(-1, micro_batches, *images.shape[1:]), 1, 0)
        keys = jax.random.split(key, micro_batches)

        def add(carry, micro_batch):
            total, batch_stats, spectral = carry
            grads, (metrics, batch_stats, spectral) = gradients(batch_stats, spectral, *micro_batch)
            total = jax.tree.map(lambda t, g: t + g / micro_batches, total, grads)
            return (total, batch_stats, spectral), metrics

        shapes = jax.eval_shape(gradients, batch_stats, spectral, images[0], key)[0]
        zeros = jax.tree.map(lambda g: jnp.zeros(g.shape, g.dtype), shapes)
        carry, metrics = jax.lax.scan(add, (zeros, batch_stats, spectral), (images, keys))
        grads, batch_stats, spectral = carry
        metrics = jax.tree.map(lambda m: m.mean(0), metrics)
        return grads, (metrics, batch_stats, spectral)

    return accumulated_gradients


def _update_average(state, decay):
    """Updates the EMA of the variables. The decay is smaller in the first steps, so that the
    initial values are soon forgotten."""
    decay = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    return optax.incremental_update(state.trained, state.average, 1.0 - decay)


def _unless_nonfinite(updated, state, finite):
    """Returns `updated` if `finite`, otherwise the old state, with the counters increased."""
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
    """The objective for one batch (paper, equation 1, section 3.2 and appendix A).

    Args:
      model: an `NVAE`.
      likelihood: maps logits to an image distribution.
      variables: parameters and running statistics.
      images: (B, H, W, C) in [0, 1].
      spectral: vectors of power iteration.
      rounds: number of rounds of power iteration.
      alpha: (groups,), from `objective.balance_alpha`.
      beta: the KL weight β.
      weight: the regularisers' weight λ.
      mesh: as in `make_train_step`.
      **apply_kwargs: `noise` or `rngs` of the model.

    Returns:
      (loss, (metrics in nats, new batch_stats, new vectors of power iteration)).
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
    """Averages running statistics over norm groups, if they were computed for each group."""
    return jax.tree.map(lambda u, r: u.mean(-2) if u.ndim > r.ndim else u, updated, running)


def make_encode_step(model: NVAE) -> Callable[..., Any]:
    """Makes the step (variables, images (B, H, W, C)) -> bottom-up features of every group."""
    return lambda variables, images: model.apply(variables, images, method="encode")


def bound_terms(likelihood: Likelihood, out: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Computes the terms of the ELBO for one posterior draw (paper, equation 1), in nats.

    Args:
      likelihood: maps logits to an image distribution.
      out: the model's `Output` for the images.
      images: (B, H, W, C) in [0, 1].

    Returns:
      a dict of `reconstruction` = -log p(x | z) (B,), `kl` (B, groups), and
      `log_weight` = log p(x, z) / q(z | x) (B,), for importance weighting.
    """
    log_likelihood = likelihood(out.logits).log_prob(images)
    log_weight = log_likelihood + out.log_p - out.log_q
    return {"reconstruction": -log_likelihood, "kl": out.kl, "log_weight": log_weight}


def make_bound_step(model: NVAE, likelihood: Likelihood) -> Callable[..., Any]:
    """Makes the step (variables, features, images, key, image numbers (B,)) -> `bound_terms` of one
    posterior draw, which depends only on the key and the image's number."""

    def bound_step(variables, features, images, key, indices):
        noise = latent_noise(model, image_keys(key, indices))
        out = model.apply(variables, features, noise=noise, method="decode")
        return bound_terms(likelihood, out, images)

    return bound_step


def make_sample_step(
    model: NVAE, likelihood: Likelihood, *, draw_pixels: bool = False
) -> Callable[..., Any]:
    """Makes the step that draws images from the prior.

    Args:
      model: an `NVAE`.
      likelihood: maps logits to an image distribution.
      draw_pixels: whether to draw from the decoder's distribution instead of taking its mean.

    Returns:
      (variables, key, image numbers (B,), temperature () or (groups,), temperature of the decoder
      ()) -> images (B, H, W, C) in [0, 1]. Each image depends only on the key and its number.
    """

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
    """Makes the step (variables, images, key) -> the decoder's mean images of posterior draws."""

    def reconstruct_step(variables, images, key):
        out: Any = model.apply(variables, images, rngs={"latent": key})
        return likelihood(out.logits).mean()

    return reconstruct_step
