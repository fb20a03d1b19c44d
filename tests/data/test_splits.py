import numpy as np
import pytest
from sklearn.datasets import load_digits

from nvae_jax.data import digits, pipeline, sources, splits
from nvae_jax.data.lmdb_folder import Lmdb
from nvae_jax.data.prepare import prepare
from nvae_jax.data.spec import DataError, DataSpec


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(DataError, match="unknown data set 'mnits'; known: .*digits.*mnist"):
        splits.open_images(DataSpec("mnits"), "train")


def test_an_unknown_split_is_an_error_that_lists_the_known_ones(idx_dir):
    with pytest.raises(DataError, match="no split 'validation', only train, test"):
        splits.open_images(DataSpec("mnist", dir=str(idx_dir)), "validation")


@pytest.mark.parametrize("name", sorted(set(sources.SOURCES) - {"digits"}))
def test_missing_data_are_an_error_that_says_where_and_how_to_get_them(name, tmp_path):
    missing = tmp_path / "absent"
    with pytest.raises(DataError) as caught:
        splits.open_images(DataSpec(name, dir=str(missing)), "train")
    message = str(caught.value)
    assert f"{missing}/{name} or {missing} (no such folder)" in message
    assert "--config.data.dir=DIR" in message and "launch/prepare_data.py" in message
    assert "\n" not in message


def test_the_default_folder_is_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"not in {tmp_path}/nvae_data/mnist"):
        splits.open_images(DataSpec("mnist"), "train")


def test_a_number_of_images_that_is_not_published_is_a_warning(idx_dir, monkeypatch):
    said = []
    monkeypatch.setattr(splits.logging, "warning", lambda text, *values: said.append(text % values))
    splits._compare_size.cache_clear()
    for _ in range(3):
        splits.open_images(DataSpec("mnist", dir=str(idx_dir)), "train")
    splits.open_images(DataSpec("digits"), "train")
    assert (
        len(said) == 1 and "23 images in split train, but the published number is 60000" in said[0]
    )


def test_the_splits_of_digits_are_disjoint_and_complete():
    train, test = (splits.open_images(DataSpec("digits"), split) for split in ("train", "test"))
    assert train.shape == (1500, 16, 16, 1) and test.shape == (297, 16, 16, 1)
    assert train.dtype == np.uint8 and train.max() == 255 and train.min() == 0
    # Reduced again, each image is most similar to the digit that it was made from.
    # (Enlarging blurs, so one or two can be as similar to another digit.)
    small = np.concatenate([train, test]).reshape(-1, 8, 2, 8, 2).mean((2, 4)).reshape(-1, 64)
    with np.load(digits.FILE) as file:
        np.testing.assert_array_equal(file["images"], load_digits().images)
    original = load_digits().data[np.random.RandomState(0).permutation(1797)]
    small, original = (x - x.mean(1, keepdims=True) for x in (small, original))
    small, original = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (small, original))
    likeness = small @ original.T
    assert (likeness.argmax(1) == np.arange(1797)).sum() >= 1790
    assert likeness.diagonal().min() > 0.8


@pytest.mark.parametrize(
    "count, name, other",
    [
        (1_281_167, "imagenet32", "imagenet32_downsampled"),
        (1_281_149, "imagenet32_downsampled", "imagenet32"),
        (1_281_147, "imagenet32_downsampled", "imagenet32"),
    ],
)
def test_the_two_downsampled_imagenets_are_told_apart_by_their_sizes(
    count, name, other, tmp_path, monkeypatch
):
    class Many:
        shape = (count, 32, 32, 3)

        def __len__(self):
            return count

    monkeypatch.setattr(Lmdb, "open", lambda *_: Many())
    for split in ("train", "validation"):
        (tmp_path / f"{split}.lmdb").mkdir()
    with pytest.raises(DataError, match=f"indicate '{other}'"):
        splits.open_images(DataSpec(name, dir=str(tmp_path), channels=3), "train")
    opened = splits.open_images(DataSpec(other, dir=str(tmp_path), channels=3), "train")
    assert len(opened) == count


def test_the_published_validation_sizes_of_the_two_imagenets_differ():
    assert 49_999 in sources.SOURCES["imagenet32"].sizes["validation"]
    assert 49_999 not in sources.SOURCES["imagenet32_downsampled"].sizes["validation"]


def test_stacked_mnist_is_made_from_the_files_of_mnist(idx_dir, grey_images):
    spec = DataSpec("stacked_mnist", dir=str(idx_dir), channels=3, padding=2)
    iterator = pipeline.train_iterator(spec, batch_size=4, seed=0)
    batch = next(iterator)
    iterator.close()
    assert batch["image"].shape == (4, 32, 32, 3)
    known = {image.tobytes() for image in grey_images[:23]}
    colours = np.round(batch["image"][:, 2:30, 2:30] * 255).astype(np.uint8)
    assert all(image[..., c].tobytes() in known for image in colours for c in range(3))


def test_npz_of_celeba_is_cropped_and_resized(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 218, 178, 3), np.uint8)
    np.savez(tmp_path / "train.npz", images=images)
    spec = DataSpec("celeba64", dir=str(tmp_path), image_size=64, channels=3)
    opened = splits.open_images(spec, "train")
    assert opened.shape == (4, 64, 64, 3) and opened[0].shape == (64, 64, 3)
    # Pixels outside of the box have no influence.
    images[:, :40], images[:, 188:], images[:, :, :15], images[:, :, 163:] = 0, 0, 0, 0
    np.savez(tmp_path / "train.npz", images=images)
    np.testing.assert_array_equal(splits.open_images(spec, "train")[2], opened[2])


SPECS = {
    "digits": {"image_size": 16, "binarize": True},
    "folder": {"image_size": 16, "channels": 3, "horizontal_flip": True},
    "ffhq256": {"image_size": 16, "channels": 3},
}


@pytest.mark.parametrize("name", SPECS)
def test_every_data_set_without_tensorflow_datasets_trains_two_steps(
    name, pictures, tmp_path, train_two_steps
):
    """Data sets that are not in tests/data/test_tfds.py."""
    if name != "digits":
        prepare(name, str(tmp_path), manual_dir=str(pictures), image_size=16)
    spec = DataSpec(name, dir="" if name == "digits" else str(tmp_path), **SPECS[name])
    train_two_steps(spec)
    split = pipeline.resolve_split(spec, "test")
    assert split == ("test" if name == "digits" else "validation")
