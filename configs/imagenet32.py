"""ImageNet 32 as published: 3.92 bits per dimension on the original set (van den Oord et al. 2016).

The later, box-downsampled ImageNet 32 gives other numbers; it is another data source.

    python launch/train.py --config=configs/imagenet32.py --workdir=DIR

Published on 24 V100 in 70 hours (45 epochs of 2,224 steps). Not yet run here.
"""

from nvae_jax.configs import cifar10


def get_config():
    """268,509,444 parameters; one scale of 28 groups."""
    config = cifar10.get_config()
    config.data.name = "imagenet32"
    config.model.update(num_groups=28, encoder_width=192, decoder_width=192)
    config.objective.update(spectral=1e-2, spectral_init=1.0)
    config.optimizer.warmup_steps = 2224
    config.train.update(num_steps=45 * 2224, batch_size=576)
    return config
