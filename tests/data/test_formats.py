"""Every accepted format: small sets written on the spot, read back, cut short, misused."""

import pickle
import struct

import lmdb
import numpy as np
import pytest

from nvae_jax.data import pipeline, sources
from nvae_jax.data.celeba import CelebA
from nvae_jax.data.cifar import Cifar
from nvae_jax.data.images import fit, read_file
from nvae_jax.data.lmdb_folder import Lmdb
from nvae_jax.data.npz import Npz
from nvae_jax.data.spec import DataError, DataSpec
from nvae_jax.data.tfrecords import TfRecords


def read(form, directory, split, channels=0):
    images = form.open(form.find(directory)[split], split, channels)
    return np.stack([images[i] for i in range(len(images))])


def planes(images):
    """uint8 (N, H, W, 3) as CIFAR orders it: colour by colour, (N, 3 * H * W)."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


# CIFAR-10


def write_cifar_binary(directory, images):
    for i, part in enumerate(np.array_split(planes(images), 6)):
        labels = np.arange(len(part), dtype=np.uint8)[:, None] % 10
        name = f"data_batch_{i + 1}.bin" if i < 5 else "test_batch.bin"
        (directory / name).write_bytes(np.concatenate([labels, part], 1).tobytes())


def write_cifar_pickles(directory, images):
    for i, part in enumerate(np.array_split(planes(images), 6)):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        content = pickle.dumps({b"data": part, b"labels": [0] * len(part)}, protocol=2)
        (directory / name).write_bytes(content)


@pytest.mark.parametrize("write", [write_cifar_binary, write_cifar_pickles])
@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin", "cifar-10-batches-py"])
def test_cifar(write, folder, tmp_path, colour_images):
    images = colour_images(24)
    (tmp_path / folder).mkdir(exist_ok=True)
    write(tmp_path / folder, images)
    np.testing.assert_array_equal(read(Cifar(), tmp_path, "train"), images[:20])
    np.testing.assert_array_equal(read(Cifar(), tmp_path, "test"), images[20:])


def test_cifar_pickle_as_python_2_wrote_it(tmp_path, colour_images):
    images = colour_images(24)
    write_cifar_pickles(tmp_path, images)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    np.testing.assert_array_equal(read(Cifar(), tmp_path, "test"), images[20:])


def test_cifar_without_one_of_its_files(tmp_path, colour_images):
    write_cifar_binary(tmp_path, colour_images(24))
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match="data_batch_3.bin: cannot be read"):
        read(Cifar(), tmp_path, "train")


@pytest.mark.parametrize("write", [write_cifar_binary, write_cifar_pickles])
def test_cifar_truncated(write, tmp_path, colour_images):
    write(tmp_path, colour_images(6))
    (path,) = tmp_path.glob("test_batch*")
    content = path.read_bytes()
    for length in [*range(0, len(content), 101), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"{path}: truncated"):
            read(Cifar(), tmp_path, "test")


def test_cifar_100_is_not_cifar_10(tmp_path, colour_images):
    write_cifar_binary(tmp_path, colour_images(6))
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\x0b" + path.read_bytes()[1:])
    with pytest.raises(DataError, match="record 0 has label 11; not a CIFAR-10 file"):
        read(Cifar(), tmp_path, "test")


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_cifar_pickles_run_no_code(tmp_path, colour_images, capsys):
    write_cifar_pickles(tmp_path, colour_images(6))
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match=r"asks for builtins\.print.*refused"):
        read(Cifar(), tmp_path, "test")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "batch, message",
    [
        ({b"labels": [1]}, "no table of pixels"),
        ({b"data": np.zeros((2, 7), np.uint8)}, "rows of 7 values"),
        ({b"data": np.zeros((2, 3072))}, "no table of pixels"),
        ([1, 2], "damaged pickle"),
    ],
    ids=["no data", "rows", "floats", "list"],
)
def test_cifar_pickles_of_something_else(batch, message, tmp_path, colour_images):
    write_cifar_pickles(tmp_path, colour_images(6))
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match=f"test_batch: .*{message}"):
        read(Cifar(), tmp_path, "test")


# .npz


@pytest.mark.parametrize("key", ["images", "data", "arr_0"])
def test_npz(key, tmp_path, colour_images):
    train, validation = colour_images(5), colour_images(3, seed=1)
    np.savez(tmp_path / "train.npz", **{key: train}, labels=np.zeros(5))
    np.savez_compressed(tmp_path / "validation.npz", **{key: validation})
    assert set(Npz().find(tmp_path)) == {"train", "validation"}
    np.testing.assert_array_equal(read(Npz(), tmp_path, "train"), train)
    np.testing.assert_array_equal(read(Npz(), tmp_path, "validation"), validation)


def test_npz_of_one_file_with_all_splits(tmp_path, grey_images):
    np.savez(tmp_path / "mnist.npz", x_train=grey_images[:20], x_test=grey_images[20:])
    assert set(Npz().find(tmp_path)) == {"train", "test"}
    np.testing.assert_array_equal(read(Npz(), tmp_path, "test"), grey_images[20:, ..., None])


def test_npz_of_downsampled_imagenet(tmp_path, colour_images):
    images = colour_images(30)
    for i in range(10):
        np.savez(tmp_path / f"train_data_batch_{i + 1}.npz", data=planes(images[3 * i : 3 * i + 3]))
    np.savez(tmp_path / "val_data.npz", data=planes(images[:4]))
    np.testing.assert_array_equal(read(Npz(), tmp_path, "train"), images)
    np.testing.assert_array_equal(read(Npz(), tmp_path, "validation"), images[:4])


def test_npz_truncated(tmp_path, colour_images):
    np.savez_compressed(tmp_path / "train.npz", images=colour_images(2, 8))
    content = (tmp_path / "train.npz").read_bytes()
    for length in range(0, len(content), 13):
        (tmp_path / "train.npz").write_bytes(content[:length])
        with pytest.raises(DataError, match="train.npz: truncated or damaged"):
            read(Npz(), tmp_path, "train")


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"labels": np.zeros(3, np.uint8)}, "has none of the arrays"),
        ({"images": np.zeros((2, 8, 8, 3), np.float32)}, "float32, where images must be uint8"),
        ({"images": np.zeros((2, 8, 8, 4), np.uint8)}, "shape"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "shape"),
        ({"images": np.zeros((8,), np.uint8)}, "shape"),
        ({"images": np.array([{}, {}])}, "damaged"),
    ],
    ids=["no images", "floats", "four channels", "empty", "flat", "objects"],
)
def test_npz_of_something_else(arrays, message, tmp_path):
    np.savez(tmp_path / "train.npz", **arrays)
    with pytest.raises(DataError, match=f"train.npz: .*{message}"):
        read(Npz(), tmp_path, "train")


# LMDB


def write_lmdb(path, records, keys=None):
    path.mkdir()
    environment = lmdb.open(str(path), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for i, record in enumerate(records):
            transaction.put(keys[i] if keys else str(i).encode(), record)
    environment.close()


@pytest.mark.parametrize("kind", ["raw", "PNG"])
def test_lmdb_of_the_published_code(kind, tmp_path, colour_images, encode):
    images = colour_images(12)
    as_bytes = (lambda x: x.tobytes()) if kind == "raw" else encode
    write_lmdb(tmp_path / "train.lmdb", [as_bytes(image) for image in images])
    write_lmdb(tmp_path / "validation.lmdb", [as_bytes(image) for image in images[:3]])
    assert set(Lmdb().find(tmp_path)) == {"train", "validation"}
    np.testing.assert_array_equal(read(Lmdb(), tmp_path, "train"), images)  # 0, 1, 2, ..., 10, 11
    np.testing.assert_array_equal(read(Lmdb(), tmp_path, "validation"), images[:3])


def test_lmdb_of_lsun(tmp_path, colour_images, encode):
    images = colour_images(4)
    keys = [b"ab3", b"0f1", b"c22", b"001"]
    write_lmdb(tmp_path / "bedroom_train_lmdb", [encode(x, "PNG") for x in images], keys)
    write_lmdb(tmp_path / "bedroom_val_lmdb", [encode(images[0], "WEBP", lossless=True)], [b"x"])
    found = read(Lmdb(), tmp_path, "train")
    np.testing.assert_array_equal(found, images[[3, 1, 0, 2]])  # LMDB sorts its keys.
    np.testing.assert_array_equal(read(Lmdb(), tmp_path, "validation"), images[:1])


def test_lmdb_trains_in_several_iterators_and_processes(tmp_path, colour_images):
    for split in ("train", "validation"):
        write_lmdb(tmp_path / f"{split}.lmdb", [x.tobytes() for x in colour_images(12)])
    batches = []
    for workers in (0, 0, 1):
        spec = DataSpec("imagenet32", dir=str(tmp_path), channels=3, workers=workers)
        iterator = pipeline.train_iterator(spec, batch_size=6, seed=0)
        batches.append(next(iterator)["image"])
        iterator.close()
    np.testing.assert_array_equal(batches[0], batches[1])
    np.testing.assert_array_equal(batches[0], batches[2])


def test_lmdb_truncated(tmp_path, colour_images):
    for i, pages in enumerate((0, 1, 2, 3, 5)):
        path = tmp_path / str(i) / "train.lmdb"
        path.parent.mkdir()
        write_lmdb(path, [x.tobytes() for x in colour_images(12)])
        content = (path / "data.mdb").read_bytes()
        (path / "data.mdb").write_bytes(content[: 4096 * pages + 100])
        with pytest.raises(DataError, match="train.lmdb.*(truncated|damaged)"):
            read(Lmdb(), path.parent, "train")


def test_lmdb_of_something_else(tmp_path):
    write_lmdb(tmp_path / "train.lmdb", [b"12345"])
    with pytest.raises(DataError, match="train.lmdb record 0: 5 bytes are no square"):
        read(Lmdb(), tmp_path, "train")
    write_lmdb(tmp_path / "validation.lmdb", [])
    with pytest.raises(DataError, match="validation.lmdb: has no records"):
        read(Lmdb(), tmp_path, "validation")
    (tmp_path / "test.lmdb").mkdir()
    (tmp_path / "test.lmdb" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(DataError, match="test.lmdb: not an LMDB database"):
        read(Lmdb(), tmp_path, "test")


def test_lmdb_with_a_damaged_record_names_it(tmp_path, colour_images, encode):
    contents = [encode(image) for image in colour_images(3)]
    contents[1] = contents[1][:80]
    write_lmdb(tmp_path / "train.lmdb", contents)
    with pytest.raises(DataError, match="train.lmdb record 1: damaged image"):
        read(Lmdb(), tmp_path, "train")


# TFRecords


def field(number, content):
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def example(image, label=3):
    """A tf.train.Example as Glow wrote them, put together byte by byte."""
    features = {
        b"shape": field(3, field(1, b"".join(map(varint, image.shape)))),
        b"data": field(1, field(1, image.tobytes())),
        b"label": field(3, field(1, varint(label))),
    }
    entries = [field(1, field(1, name) + field(2, value)) for name, value in features.items()]
    return field(1, b"".join(entries))


def tfrecord(*records):
    return b"".join(struct.pack("<Q4x", len(record)) + record + bytes(4) for record in records)


def write_glow(directory, images):
    for split, part in (("train", images[:-2]), ("validation", images[-2:])):
        (directory / split).mkdir()
        halves = np.array_split(part, 2)
        for i, half in enumerate(halves):
            path = directory / split / f"{split}-r05-s-{i:04d}-of-0002.tfrecords"
            path.write_bytes(tfrecord(*(example(image) for image in half)))


def test_tfrecords_of_glow(tmp_path, colour_images):
    images = colour_images(11)
    write_glow(tmp_path, images)
    other = tmp_path / "train" / "train-r04-s-0000-of-0001.tfrecords"
    other.write_bytes(tfrecord(example(images[0, :16, :16])))
    np.testing.assert_array_equal(read(TfRecords(5), tmp_path, "train"), images[:9])
    np.testing.assert_array_equal(read(TfRecords(5), tmp_path, "validation"), images[9:])


def test_tfrecords_truncated(tmp_path, colour_images):
    write_glow(tmp_path, colour_images(11))
    path = tmp_path / "train" / "train-r05-s-0001-of-0002.tfrecords"
    content = path.read_bytes()
    size = len(content) // 4
    for length in range(1, len(content), 61):
        if length % size:
            path.write_bytes(content[:length])
            with pytest.raises(DataError, match=f"{path}: truncated in record {length // size}"):
                read(TfRecords(5), tmp_path, "train")


def test_tfrecords_damaged(tmp_path, colour_images):
    write_glow(tmp_path, colour_images(11))
    path = tmp_path / "validation" / "validation-r05-s-0000-of-0002.tfrecords"
    content = path.read_bytes()
    for position in (12, 13, 20, 40, 60):  # In the structure, before the pixels.
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            read(TfRecords(5), tmp_path, "validation")
        except DataError as error:
            assert f"{path} record 0" in str(error)


def test_tfrecords_of_something_else(tmp_path, colour_images):
    write_glow(tmp_path, colour_images(11))
    path = tmp_path / "train" / "train-r05-s-0000-of-0002.tfrecords"
    path.write_bytes(tfrecord(b"", field(1, b"")))
    with pytest.raises(DataError, match="record 0: damaged, or not an image of Glow's layout"):
        read(TfRecords(5), tmp_path, "train")


# CelebA


@pytest.fixture
def celeba(tmp_path, encode):
    pictures = np.random.default_rng(0).integers(0, 256, (6, 218, 178, 3), np.uint8)
    (tmp_path / "img_align_celeba").mkdir()
    for i, picture in enumerate(pictures):
        path = tmp_path / "img_align_celeba" / f"{i + 1:06d}.jpg"
        path.write_bytes(encode(picture, "JPEG"))
    lines = [f"{i + 1:06d}.jpg {split}" for i, split in enumerate((0, 0, 0, 1, 2, 0))]
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_celeba_has_its_own_splits_and_crop(celeba):
    spec = DataSpec("celeba64", dir=str(celeba), image_size=64, channels=3)
    counts = {split: pipeline.num_examples(spec, split) for split in sources.splits(spec)}
    assert counts == {"train": 4, "validation": 1, "test": 1}
    image = read_file(celeba / "img_align_celeba" / "000006.jpg")
    expected = fit(image, 64, (15, 40, 163, 188))
    np.testing.assert_array_equal(sources.open_images(spec, "train")[3], expected)


@pytest.mark.parametrize("line", ["", "000001.jpg", "000001.jpg 3", "../../etc/passwd 0", "a b c"])
def test_celeba_with_a_damaged_partition(celeba, line):
    with (celeba / "list_eval_partition.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match="list_eval_partition.txt line 7: "):
        CelebA().find(celeba)


def test_celeba_without_its_partition(celeba):
    (celeba / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match="list_eval_partition.txt: cannot be read"):
        CelebA().find(celeba)


# Through the names of data sets


@pytest.mark.parametrize(
    "count, name, other",
    [
        (1_281_167, "imagenet32", "imagenet32_downsampled"),
        (1_281_149, "imagenet32_downsampled", "imagenet32"),
        (1_281_147, "imagenet32_downsampled", "imagenet32"),
    ],
)
def test_the_two_imagenets_are_told_apart(count, name, other, tmp_path, monkeypatch):
    class Many:
        shape = (count, 32, 32, 3)

        def __len__(self):
            return count

    monkeypatch.setattr(Lmdb, "open", lambda *_: Many())
    for split in ("train", "validation"):
        (tmp_path / f"{split}.lmdb").mkdir()
    with pytest.raises(DataError, match=f"is the mark of '{other}'"):
        sources.open_images(DataSpec(name, dir=str(tmp_path), channels=3), "train")
    opened = sources.open_images(DataSpec(other, dir=str(tmp_path), channels=3), "train")
    assert len(opened) == count


def test_validation_marks_of_the_two_imagenets():
    assert 49_999 in sources.SOURCES["imagenet32"].sizes["validation"]
    assert 49_999 not in sources.SOURCES["imagenet32_downsampled"].sizes["validation"]


def test_stacked_mnist_from_files_of_mnist(idx_dir, grey_images):
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
    opened = sources.open_images(spec, "train")
    assert opened.shape == (4, 64, 64, 3) and opened[0].shape == (64, 64, 3)
    # The crop takes nothing from outside of its box.
    images[:, :40], images[:, 188:], images[:, :, :15], images[:, :, 163:] = 0, 0, 0, 0
    np.savez(tmp_path / "train.npz", images=images)
    np.testing.assert_array_equal(sources.open_images(spec, "train")[2], opened[2])
