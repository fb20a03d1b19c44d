"""MNIST as published: 78.01 nats.

    python launch/train.py --config=configs/mnist.py --workdir=DIR --config.data.dir=IDX_FOLDER

Published on 2 V100 in 21 hours (400 epochs of 150 steps). Not yet run here.
"""

from nvae_jax.configs import base


def get_config():
    """33,363,134 parameters; 2 scales of 10 and 5 groups."""
    config = base.get_config()
    config.data.update(name="mnist", padding=2, binarize=True)
    config.optimizer.warmup_steps = 5 * 150
    config.train.update(num_steps=400 * 150, batch_size=400)
    return config
