"""FFHQ 256 as published: 0.69 bits per dimension at 5 bits.

    python launch/train.py --config=configs/ffhq256.py --workdir=DIR

Published on 24 V100 in 160 hours (200 epochs of 656 steps). Not yet run here.
"""

from nvae_jax.configs import celebahq256


def get_config():
    """330,798,664 parameters, 6,005,760 latent variables."""
    config = celebahq256.get_config()
    config.data.name = "ffhq256"
    config.objective.spectral = 1e-1
    config.optimizer.update(learning_rate=8e-3, warmup_steps=5 * 656)
    config.train.update(num_steps=200 * 656, batch_size=96)
    return config
