"""Small data sets in their real formats, written by the tests."""

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image

from nvae_jax import build
from nvae_jax.configs import base
from nvae_jax.data import pipeline


@pytest.fixture(scope="session")
def idx_bytes():
    """A function from uint8 (N, H, W) to the bytes of an IDX file."""
    return _idx_bytes


def _idx_bytes(images: np.ndarray) -> bytes:
    return struct.pack(">HBB3I", 0, 8, 3, *images.shape) + images.tobytes()


@pytest.fixture
def grey_images():
    """Thirty 28x28 images, all different."""
    return np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)


@pytest.fixture
def idx_dir(tmp_path, grey_images):
    """MNIST's two image files: 23 images to train on, 7 to test, one of the files gzipped."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx_bytes(grey_images[:23]))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(_idx_bytes(grey_images[23:]))
    )
    return tmp_path


@pytest.fixture(scope="session")
def colour_images():
    """A function from (count, size, seed) to colour images, uint8 (count, size, size, 3)."""
    return _colour_images


def _colour_images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture(scope="session")
def encode():
    """A function from (uint8 image (H, W, C), format of Pillow) to the bytes of a file."""
    return _encode


def _encode(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """A folder with sixty colour pictures of 40x24, named by their number, in three formats."""
    folder = tmp_path / "pictures"
    for i, image in enumerate(_colour_images(60, 40)):
        kind, suffix = (("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"))[i % 3]
        path = folder / f"album{i % 4}" / f"{i:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(image[:, :24], kind))
    return folder


@pytest.fixture
def no_bucket(monkeypatch):
    """Prevents tensorflow-datasets from looking in a bucket for a data set that it prepares, which
    would use the network and leave a temporary folder."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(tfds.core.DatasetInfo, "initialize_from_bucket", lambda self: None)


@pytest.fixture(scope="session")
def read():
    """A function from (format, folder, split) to all images of the split, uint8 (N, H, W, C)."""

    def read_all(form, directory, split):
        images = form.open(form.find(directory)[split], split, 0)
        return np.stack([images[i] for i in range(len(images))])

    return read_all


@pytest.fixture(scope="session")
def train_two_steps():
    """A function that trains a model without towers for two steps on a data set, and checks the
    loss."""
    updates = {}

    def update_for(spec):
        key = (spec.image_shape, spec.binarize, spec.num_bits, spec.padding)
        if key not in updates:
            config = base.get_config()
            config.data.update(
                image_size=spec.image_size,
                channels=spec.channels,
                binarize=spec.binarize,
                num_bits=spec.num_bits,
                padding=spec.padding,
            )
            config.model.update(TOWERLESS)
            experiment = build.build(build.resolve(config))
            updates[key] = experiment, experiment.train_step()
        return updates[key]

    def train(spec):
        experiment, update = update_for(spec)
        iterator = pipeline.train_iterator(spec, batch_size=4, seed=0)
        state = experiment.create_state(next(iterator)["image"])
        for _ in range(2):
            images = next(iterator)["image"]
            assert images.shape == (4, *spec.image_shape)
            assert 0 <= images.min() and images.max() <= 1
            state, metrics = update(state, images)
            assert np.isfinite(metrics["loss"])
        iterator.close()
        assert int(state.step) == 2 and not int(state.nonfinite_steps)

    return train


# The model of one group is the smallest to compile.
TOWERLESS = dict(
    num_scales=1,
    num_groups=1,
    latent_channels=2,
    encoder_width=4,
    decoder_width=4,
    process_blocks=1,
    preprocess_cells=1,
    postprocess_cells=1,
    num_mixtures=1,
    likelihood="auto",
)
