"""Fine-tunes a trained model on other images, at a small learning rate.

python examples/fine_tune.py runs/digits runs/inverted
"""

import sys

import numpy as np

import nvae_jax


def inverted(run, num):
    """Stands for your data, uint8 (N, H, W, C): inverted samples of the model."""
    return np.uint8(255 * (1 - run.sample(num)))


def fine_tune(source, images, workdir, num_steps, batch_size=25):
    """Trains a new run in `workdir` that starts from the variables of the run in `source`."""
    np.save(f"{workdir}.npy", images)
    # The old run's config. Your own also works, if its arrays have the same shapes.
    config = nvae_jax.get_config(
        source,
        data={"name": "arrays", "dir": f"{workdir}.npy"},
        train={"init_from": str(source), "num_steps": num_steps, "batch_size": batch_size},
        optimizer={"learning_rate": 1e-3, "warmup_steps": 0},
        # The latents are in use already, so the KL term has its full weight from the start.
        objective={"kl_min": 1.0},
    )
    nvae_jax.train_run(config, workdir)
    return nvae_jax.load(workdir)


if __name__ == "__main__":
    source, workdir = sys.argv[1:]
    before = nvae_jax.load(source)
    images = inverted(before, 1000)
    after = fine_tune(source, images[100:], workdir, num_steps=500)
    for name, run in (("before", before), ("after", after)):
        print(f"{name}: {-run.log_prob(images[:100]).mean():.2f} nats")
