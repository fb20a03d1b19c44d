"""Trains a model on your own arrays, in your own training loop.

python examples/own_data_and_loop.py
"""

import jax
import numpy as np
import optax

import nvae_jax


def squares(num, size=16, seed=0):
    """Stands for your data, float32 (N, H, W, C) in [0, 1]: a white square at a random place."""
    images, half = np.zeros((num, size, size, 1), np.float32), size // 2
    corners = np.random.default_rng(seed).integers(0, half, (num, 2))
    for image, (y, x) in zip(images, corners, strict=True):
        image[y : y + half, x : x + half] = 1
    return images


def train(config, images, num_steps, batch_size=32, seed=0):
    """Returns the model, its variables and the last loss in nats."""
    model, likelihood = nvae_jax.build_model(config), nvae_jax.build_likelihood(config)
    variables = model.init(jax.random.key(seed), images)
    rate = optax.cosine_decay_schedule(1e-2, num_steps)
    # Clipping prevents that a single bad batch makes a deep model diverge.
    optimizer = optax.chain(optax.clip_by_global_norm(200.0), optax.adamax(rate, eps=1e-3))
    opt_state = optimizer.init(variables["params"])

    @jax.jit
    def step(variables, opt_state, images, key, beta):
        def loss(params):
            # train=True normalises by the batch, and updates the running statistics.
            options = dict(train=True, rngs={"latent": key}, mutable=["batch_stats"])
            out, updated = model.apply({**variables, "params": params}, images, **options)
            log_likelihood = likelihood(out.logits).log_prob(images)
            return (beta * out.kl.sum(1) - log_likelihood).mean(), updated

        (nats, updated), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **updated}, opt_state, nats

    key, order = jax.random.key(seed + 1), np.random.default_rng(seed)
    for number in range(num_steps):
        batch = images[order.integers(0, len(images), batch_size)]
        # With the full KL weight from the start, the latents would never be used.
        beta = min(1.0, (number + 1) / (0.3 * num_steps))
        key, latent_key = jax.random.split(key)
        variables, opt_state, nats = step(variables, opt_state, batch, latent_key, beta)
        if number % 100 == 0:
            print(f"step {number}: {float(nats):.2f} nats")
    return model, variables, float(nats)


if __name__ == "__main__":
    train(nvae_jax.get_config("digits"), squares(1000), num_steps=1000)
