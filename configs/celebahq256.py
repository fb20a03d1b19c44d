"""CelebA-HQ 256 as published: 0.70 bits per dimension at 5 bits.

    python launch/train.py --config=configs/celebahq256.py --workdir=DIR

Published on 24 V100 in 94 hours (300 epochs of 281 steps). Not yet run here.
"""

from nvae_jax.configs import cifar10


def get_config():
    """330,798,664 parameters; 5 scales of 16, 8, 4, 4 and 4 groups."""
    config = cifar10.get_config()
    config.data.update(name="celebahq256", image_size=256, num_bits=5)
    config.model.update(
        num_scales=5,
        num_groups=16,
        adaptive_groups=True,
        min_groups=4,
        encoder_width=30,
        decoder_width=30,
        num_flows=2,
    )
    config.objective.update(spectral=1e-2, spectral_init=1.0)
    config.optimizer.warmup_steps = 5 * 281
    config.train.update(num_steps=300 * 281, batch_size=96)
    return config
