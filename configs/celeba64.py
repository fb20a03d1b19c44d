"""CelebA 64 as published: 2.03 bits per dimension, on the validation split.

    python launch/train.py --config=configs/celeba64.py --workdir=DIR

Published on 8 V100 in 92 hours (90 epochs of 1,271 steps). Not yet run here.
"""

from nvae_jax.configs import cifar10


def get_config():
    """153,281,364 parameters; 3 scales of 20, 10 and 5 groups."""
    config = cifar10.get_config()
    config.data.update(name="celeba64", image_size=64)
    config.model.update(
        num_scales=3, num_groups=20, adaptive_groups=True, encoder_width=64, decoder_width=64
    )
    config.objective.spectral = 1e-1
    config.optimizer.warmup_steps = 5 * 1271
    config.train.update(num_steps=90 * 1271, batch_size=128)
    return config
