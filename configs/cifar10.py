"""CIFAR-10 as published: 2.91 bits per dimension (2.93 without flows).

    python launch/train.py --config=configs/cifar10.py --workdir=DIR

Published on 8 V100 in 55 hours (400 epochs of 195 steps). Not yet run here.
"""

from nvae_jax.configs import base


def get_config():
    """130,852,480 parameters; one scale of 30 groups."""
    config = base.get_config()
    config.data.update(name="cifar10", channels=3, horizontal_flip=True)
    config.model.update(
        num_scales=1,
        num_groups=30,
        adaptive_groups=False,
        encoder_width=128,
        decoder_width=128,
        process_blocks=1,
        preprocess_cells=2,
        postprocess_cells=2,
        num_flows=1,
        likelihood="logistic_mixture",
    )
    config.optimizer.warmup_steps = 5 * 195
    config.train.update(num_steps=400 * 195, batch_size=256)
    return config
