"""Fashion-MNIST with the published MNIST model. Not in the paper; not yet run here.

apt-get install dataset-fashion-mnist    # or --config.data.dir=FOLDER with the IDX files
python launch/train.py --config=configs/fashion_mnist.py --workdir=DIR
"""

from nvae_jax.configs import mnist


def get_config():
    """33,363,134 parameters; 2 scales of 10 and 5 groups."""
    config = mnist.get_config()
    config.data.name = "fashion_mnist"
    return config
