"""NumPy arrays as a data set: which are read or memory-mapped, and how splits are made."""

import pickle

import numpy as np
import pytest

from nvae_jax.data import numpy_files, pipeline, splits
from nvae_jax.data.arrays import ArrayImages
from nvae_jax.data.spec import DataError, DataSpec


def drawn(shape, dtype=np.uint8, high=256, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def spec_of(path, **options):
    return DataSpec("arrays", dir=str(path), image_size=0, channels=0, **options)


def opened(path, split, **options):
    images = splits.open_images(spec_of(path, **options), split)
    return np.stack([images[i] for i in range(len(images))])


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_each_split_is_read_from_its_file(tmp_path, ending):
    train, test = drawn((5, 8, 8, 3)), drawn((3, 8, 8, 3), seed=1)
    for name, array in (("train", train), ("test", test)):
        path = tmp_path / f"{name}.{ending}"
        np.save(path, array) if ending == "npy" else np.savez(path, whatever=array)
    assert splits.names(spec_of(tmp_path)) == ("train", "test")
    np.testing.assert_array_equal(opened(tmp_path, "train"), train)
    np.testing.assert_array_equal(opened(tmp_path, "test"), test)


def test_one_archive_can_have_all_splits(tmp_path):
    arrays = {name: drawn((3, 8, 8), seed=i) for i, name in enumerate(("x_train", "val", "test"))}
    np.savez(tmp_path / "mine.npz", labels=np.arange(3), **arrays)
    for place in (tmp_path, tmp_path / "mine.npz"):
        assert splits.names(spec_of(place)) == ("train", "validation", "test")
        np.testing.assert_array_equal(opened(place, "validation")[..., 0], arrays["val"])


@pytest.mark.parametrize("name", ["mine.npy", "train.npy", "mine.npz"])
def test_a_tenth_of_a_single_array_is_held_out(tmp_path, name):
    array = drawn((25, 8, 8))
    np.save(tmp_path / name, array) if name[-1] == "y" else np.savez(tmp_path / name, array)
    for place in (tmp_path, tmp_path / name):
        train, held_out = (opened(place, split) for split in ("train", "validation"))
        assert (len(train), len(held_out)) == (23, 2)
        together = np.concatenate([train, held_out])[..., 0]
        assert {i.tobytes() for i in together} == {i.tobytes() for i in array}
        np.testing.assert_array_equal(
            opened(place, "validation"), held_out
        )  # the same split every time


def test_npy_files_are_mapped_and_not_sent_to_reader_processes(tmp_path):
    np.save(tmp_path / "big.npy", drawn((200, 32, 32)))
    images = ArrayImages(tmp_path / "big.npy", "")
    assert isinstance(images._array, np.memmap)
    sent = pickle.dumps(images)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent)[199], images[199])


def test_any_order_of_bytes_and_axes_in_the_file_is_read(tmp_path):
    array = drawn((4, 8, 8), np.uint16, 2**16)
    np.save(tmp_path / "a.npy", np.asfortranarray(array.astype(">u2")))
    images = splits.open_images(spec_of(tmp_path / "a.npy", num_bits=16), "train")
    np.testing.assert_array_equal(images[0][..., 0], array[0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_arrays_of_more_than_eight_bits_are_read_exactly(tmp_path, bits, channels):
    array = drawn((6, 8, 8, channels), np.uint16, 2**bits)
    np.save(tmp_path / "train.npy", array)
    np.savez(tmp_path / "test.npz", images=array[:2], max_value=2**bits - 1)
    for split, count in (("train", 6), ("test", 2)):
        spec = pipeline.describe(spec_of(tmp_path, num_bits=bits))
        seen = pipeline.preview(spec, split, 6)
        np.testing.assert_array_equal(np.round(seen * (2**bits - 1)), array[:count])


def test_sixteen_bit_arrays_that_look_black_need_a_value_for_white(tmp_path):
    array = drawn((6, 8, 8), np.uint16, 4001)
    array[:, 0, 0] = 4000
    np.save(tmp_path / "train.npy", array)
    with pytest.raises(DataError, match="train.npy of image 0: holds no value above 4000 .*black"):
        opened(tmp_path, "train")
    eight = opened(tmp_path, "train", max_value=4000)
    assert eight.dtype == np.uint8 and eight.max() == 255
    twelve = opened(tmp_path, "train", max_value=4000, num_bits=12)
    np.testing.assert_array_equal(twelve >> 4, np.floor(np.round(array * 16.38375) / 16)[..., None])
    for options, message in [
        ({"num_bits": 10}, "values from .* to 4000, but 10 bits are 0 to 1023: set .*max_value"),
        ({"num_bits": 12, "max_value": 3999}, "max_value says 0 to 3999"),
        ({"num_bits": 14, "max_value": 4000}, "has 12 bits per value .* data.num_bits=14 asks"),
        ({"num_bits": 12, "max_value": 70000}, "exceeds the range of its 16 bits"),
    ]:
        with pytest.raises(DataError, match=message):
            opened(tmp_path, "train", **options)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((2, 8, 8), np.float32), {}, "is float32, but images must be uint8 or uint16"),
        (np.zeros((2, 8, 8), np.int64), {}, "is int64"),
        (np.zeros((2, 3, 8, 8), np.uint8), {}, r"has shape \(2, 3, 8, 8\).*channels come last"),
        (np.zeros((8, 8), np.uint8), {}, "has shape"),
        (np.zeros((2, 8, 8), np.uint8), {"num_bits": 9}, "is uint8, but data.num_bits=9 asks"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, options, message):
    np.save(tmp_path / "train.npy", array)
    with pytest.raises(DataError, match=f"train.npy {message}"):
        opened(tmp_path, "train", **options)


def test_other_files_are_refused(tmp_path):
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, drawn((2, 8, 8)))
    with pytest.raises(DataError, match="has 2 files of arrays and none named train"):
        opened(tmp_path, "train")
    np.savez(tmp_path / "c.npz", left=drawn((2, 8)), right=drawn((2, 8)))
    with pytest.raises(DataError, match="c.npz: has none of the arrays train, x_train, images"):
        opened(tmp_path / "c.npz", "train")
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-1])
    with pytest.raises(DataError, match="a.npy cannot be read as .npy"):
        opened(tmp_path / "a.npy", "train")
    (tmp_path / "a.npy").write_bytes((tmp_path / "c.npz").read_bytes())
    with pytest.raises(DataError, match="a.npy cannot be read as .npy: it is an archive"):
        numpy_files.mapped(tmp_path / "a.npy")
    with pytest.raises(DataError, match="'arrays' is not in .*picture.png. Name"):
        (tmp_path / "picture.png").touch()
        opened(tmp_path / "picture.png", "train")


def test_arrays_are_never_resized(tmp_path):
    np.save(tmp_path / "train.npy", drawn((20, 8, 8)))
    spec = DataSpec("arrays", dir=str(tmp_path), image_size=16, channels=1)
    with pytest.raises(DataError, match="has images of 8x8 .* image_size=16"):
        pipeline.train_iterator(spec, batch_size=2, seed=0)


def test_reader_processes_give_the_same_batches(tmp_path):
    np.save(tmp_path / "train.npy", drawn((20, 8, 8)))
    batches = []
    for workers in (0, 1):
        spec = DataSpec("arrays", dir=str(tmp_path), image_size=8, channels=1, workers=workers)
        iterator = pipeline.train_iterator(spec, batch_size=4, seed=0)
        batches.append(next(iterator)["image"])
        iterator.close()
    np.testing.assert_array_equal(*batches)
