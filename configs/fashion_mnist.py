"""Fashion-MNIST with the published MNIST model. Not in the paper.

apt-get install dataset-fashion-mnist    # or --config.data.dir=FOLDER with the IDX files
python launch/train.py --config=configs/fashion_mnist.py --workdir=DIR

With --config.train.batch_size=32 --config.train.num_steps=6000, the test NELBO is 231.49 nats; see
docs/performance.md.
"""

from nvae_jax.configs import mnist


def get_config():
    """33,363,134 parameters; 2 scales of 10 and 5 groups."""
    config = mnist.get_config()
    config.data.name = "fashion_mnist"
    return config
