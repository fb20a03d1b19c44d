"""Trains a trained model on with other images, at a small learning rate, by the paper's step.

python examples/fine_tune.py runs/digits
"""

import sys

import jax
import numpy as np

import nvae_jax


def inverted_digits(run, num):
    """Stands for your data: float32 (N, H, W, C) in [0, 1]. Here: the model's own, inverted."""
    return 1.0 - run.sample(num)


def fine_tune(run, images, num_steps, batch_size=25, learning_rate=1e-3, seed=0):
    """Returns the run with new variables."""
    config = nvae_jax.get_config(
        run.workdir,
        seed=seed,
        train={"num_steps": num_steps, "batch_size": batch_size, "ema_decay": 0.0},
        optimizer={"learning_rate": learning_rate, "min_learning_rate": 0.0, "warmup_steps": 0},
        # The latents are in use already: the KL term has its full weight from the start.
        objective={"kl_min": 1.0},
    )
    experiment = nvae_jax.build_experiment(config)
    # As NumPy arrays, since `update` reuses the memory of the state that it is given.
    variables = jax.device_get(run.variables)
    state = experiment.create_state(images[:batch_size]).replace(**variables)
    update, order = experiment.train_step(), np.random.default_rng(seed)
    # What the model takes: of the size it was trained at with padding, binary if it is.
    images = run.prepare(images, seed)
    for number in range(num_steps):
        state, metrics = update(state, images[order.integers(0, len(images), batch_size)])
        if number % 100 == 0:
            print(f"step {number}: NELBO {float(metrics['nelbo']):.2f} nats")
    return run.with_variables(state.variables, step=int(state.step))


if __name__ == "__main__":
    before = nvae_jax.load(sys.argv[1])
    images = inverted_digits(before, 1000)
    after = fine_tune(before, images[100:], num_steps=500)
    for name, run in (("before", before), ("after", after)):
        print(name, f"{-run.log_prob(images[:100]).mean():.2f} nats")
