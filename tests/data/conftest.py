"""Small real data sets, written on the spot."""

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def idx_bytes():
    """A function: uint8 (N, H, W) to the bytes of an IDX file."""
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
    """A function: (count, size, seed) to different colour images, uint8 (count, size, size, 3)."""
    return _colour_images


def _colour_images(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.fixture(scope="session")
def encode():
    """A function: (uint8 image (H, W, C), format of Pillow) to the bytes of a file."""
    return _encode


def _encode(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def pictures(tmp_path):
    """A folder with sixty 40x24 colour pictures named by their number, of three kinds."""
    folder = tmp_path / "pictures"
    for i, image in enumerate(_colour_images(60, 40)):
        kind, suffix = (("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp"))[i % 3]
        path = folder / f"album{i % 4}" / f"{i:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(image[:, :24], kind))
    return folder


@pytest.fixture(scope="session")
def read():
    """A function: (format, folder, split) to all images of the split, uint8 (N, H, W, C)."""

    def read_all(form, directory, split):
        images = form.open(form.find(directory)[split], split, 0)
        return np.stack([images[i] for i in range(len(images))])

    return read_all
