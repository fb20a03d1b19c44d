import numpy as np
import pytest

from nvae_jax.data.npz import Npz
from nvae_jax.data.spec import DataError


@pytest.mark.parametrize("key", ["images", "data", "arr_0"])
def test_a_file_for_each_split_is_read(key, tmp_path, colour_images, read):
    train, validation = colour_images(5), colour_images(3, seed=1)
    np.savez(tmp_path / "train.npz", **{key: train}, labels=np.zeros(5))
    np.savez_compressed(tmp_path / "validation.npz", **{key: validation})
    assert set(Npz().find(tmp_path)) == {"train", "validation"}
    np.testing.assert_array_equal(read(Npz(), tmp_path, "train"), train)
    np.testing.assert_array_equal(read(Npz(), tmp_path, "validation"), validation)


def test_one_file_with_all_splits_is_read(tmp_path, grey_images, read):
    np.savez(tmp_path / "mnist.npz", x_train=grey_images[:20], x_test=grey_images[20:])
    assert set(Npz().find(tmp_path)) == {"train", "test"}
    np.testing.assert_array_equal(read(Npz(), tmp_path, "test"), grey_images[20:, ..., None])


def planes(images):
    """uint8 (N, H, W, 3) as downsampled ImageNet orders it: (N, 3 * H * W), colour by colour."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def test_the_archives_of_downsampled_imagenet_are_read(tmp_path, colour_images, read):
    images = colour_images(30)
    for i in range(10):
        np.savez(tmp_path / f"train_data_batch_{i + 1}.npz", data=planes(images[3 * i : 3 * i + 3]))
    np.savez(tmp_path / "val_data.npz", data=planes(images[:4]))
    np.testing.assert_array_equal(read(Npz(), tmp_path, "train"), images)
    np.testing.assert_array_equal(read(Npz(), tmp_path, "validation"), images[:4])


def test_every_truncation_is_named(tmp_path, colour_images, read):
    np.savez_compressed(tmp_path / "train.npz", images=colour_images(2, 8))
    content = (tmp_path / "train.npz").read_bytes()
    for length in range(0, len(content), 13):
        (tmp_path / "train.npz").write_bytes(content[:length])
        with pytest.raises(DataError, match="train.npz cannot be read as .npz"):
            read(Npz(), tmp_path, "train")


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"labels": np.zeros(3, np.uint8)}, "has none of the arrays"),
        ({"images": np.zeros((2, 8, 8, 3), np.float32)}, "float32, but images must be uint8"),
        ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, "shape"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "shape"),
        ({"images": np.zeros((8,), np.uint8)}, "shape"),
        ({"images": np.array([{}, {}])}, "Object arrays cannot be loaded"),
    ],
    ids=["no images", "floats", "four channels", "empty", "flat", "objects"],
)
def test_archives_of_something_else_are_refused(arrays, message, tmp_path, read):
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(DataError, match=f"train.npz.*{message}"):
        read(Npz(), tmp_path, "train")
