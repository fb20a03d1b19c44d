"""A small model of dynamically binarised Fashion-MNIST that trains on two CPU cores.

apt-get install dataset-fashion-mnist    # or --config.data.dir=FOLDER with the IDX files
python launch/train.py --config=configs/fashion_mnist_small.py --workdir=DIR
python launch/evaluate.py --workdir=DIR --num_iw_samples=10
"""

from nvae_jax.configs import fashion_mnist


def get_config():
    """2 scales of 3 groups, 8 latent channels, width 8; 2,000 steps of 32 images."""
    config = fashion_mnist.get_config()
    config.model.update(
        num_groups=3,
        adaptive_groups=False,
        latent_channels=8,
        encoder_width=8,
        decoder_width=8,
        preprocess_cells=2,
        postprocess_cells=2,
        encoder_cells_per_group=1,
        decoder_cells_per_group=1,
    )
    config.optimizer.warmup_steps = 100
    config.train.update(num_steps=2000, batch_size=32)
    return config
