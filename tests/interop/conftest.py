"""A model small enough to convert, resume and export within seconds."""

import gzip
import struct

import jax
import numpy as np
import pytest

from nvae_jax import build
from nvae_jax.configs import mnist
from nvae_jax.models.initialize import initialize

NUM_IMAGES = 12


@pytest.fixture(scope="session")
def small_config():
    """One scale of two groups on padded 28×28 images, width 4."""
    config = mnist.get_config()
    config.model.update(
        num_scales=1,
        num_groups=2,
        adaptive_groups=False,
        latent_channels=2,
        encoder_width=4,
        decoder_width=4,
        preprocess_cells=1,
        postprocess_cells=1,
        encoder_cells_per_group=1,
        decoder_cells_per_group=1,
    )
    config.log.update(every_steps=1, images_every_steps=0, num_images=4)
    config.train.update(batch_size=4, num_steps=9)
    config.optimizer.warmup_steps = 0
    return config


@pytest.fixture(scope="session")
def small_variables(small_config):
    """Its initial variables."""
    model = build.build_model(small_config)
    images = np.zeros((1, 32, 32, 1), np.float32)
    return jax.jit(lambda key: initialize(model, key, images))(jax.random.key(1))


@pytest.fixture
def mnist_dir(tmp_path):
    """MNIST's files with twelve training and twelve test images."""
    folder = tmp_path / "mnist_data"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 28, 28), np.uint8)
    content = gzip.compress(struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes())
    for name in ("train", "t10k"):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(content)
    return folder
