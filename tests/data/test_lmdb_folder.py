import numpy as np
import pytest

from nvae_jax.data import pipeline
from nvae_jax.data.lmdb_folder import Lmdb
from nvae_jax.data.spec import DataError, DataSpec

lmdb = pytest.importorskip("lmdb")


def write_lmdb(path, records, keys=None):
    path.mkdir()
    environment = lmdb.open(str(path), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for i, record in enumerate(records):
            transaction.put(keys[i] if keys else str(i).encode(), record)
    environment.close()


@pytest.mark.parametrize("kind", ["raw", "PNG"])
def test_databases_of_the_published_code_are_read(kind, tmp_path, colour_images, encode, read):
    images = colour_images(12)
    as_bytes = (lambda x: x.tobytes()) if kind == "raw" else encode
    write_lmdb(tmp_path / "train.lmdb", [as_bytes(image) for image in images])
    write_lmdb(tmp_path / "validation.lmdb", [as_bytes(image) for image in images[:3]])
    assert set(Lmdb().find(tmp_path)) == {"train", "validation"}
    np.testing.assert_array_equal(read(Lmdb(), tmp_path, "train"), images)  # 0, 1, 2, ..., 10, 11
    np.testing.assert_array_equal(read(Lmdb(), tmp_path, "validation"), images[:3])


def test_databases_of_lsun_are_read(tmp_path, colour_images, encode, read):
    images = colour_images(4)
    keys = [b"ab3", b"0f1", b"c22", b"001"]
    write_lmdb(tmp_path / "bedroom_train_lmdb", [encode(x, "PNG") for x in images], keys)
    write_lmdb(tmp_path / "bedroom_val_lmdb", [encode(images[0], "WEBP", lossless=True)], [b"x"])
    found = read(Lmdb(), tmp_path, "train")
    np.testing.assert_array_equal(found, images[[3, 1, 0, 2]])  # LMDB sorts its keys.
    np.testing.assert_array_equal(read(Lmdb(), tmp_path, "validation"), images[:1])


def test_several_iterators_and_processes_read_the_same(tmp_path, colour_images):
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


def test_truncated_databases_are_named(tmp_path, colour_images, read):
    for i, pages in enumerate((0, 1, 2, 3, 5)):
        path = tmp_path / str(i) / "train.lmdb"
        path.parent.mkdir()
        write_lmdb(path, [x.tobytes() for x in colour_images(12)])
        content = (path / "data.mdb").read_bytes()
        (path / "data.mdb").write_bytes(content[: 4096 * pages + 100])
        with pytest.raises(DataError, match="train.lmdb.*(truncated|damaged)"):
            read(Lmdb(), path.parent, "train")


def test_databases_of_something_else_are_refused(tmp_path, read):
    write_lmdb(tmp_path / "train.lmdb", [b"12345"])
    with pytest.raises(DataError, match="train.lmdb record 0: 5 bytes are not a square"):
        read(Lmdb(), tmp_path, "train")
    write_lmdb(tmp_path / "validation.lmdb", [])
    with pytest.raises(DataError, match="validation.lmdb: has no records"):
        read(Lmdb(), tmp_path, "validation")
    (tmp_path / "test.lmdb").mkdir()
    (tmp_path / "test.lmdb" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(DataError, match="test.lmdb: not an LMDB database"):
        read(Lmdb(), tmp_path, "test")


def test_a_damaged_record_is_named(tmp_path, colour_images, encode, read):
    contents = [encode(image) for image in colour_images(3)]
    contents[1] = contents[1][:80]
    write_lmdb(tmp_path / "train.lmdb", contents)
    with pytest.raises(DataError, match="train.lmdb record 1: damaged image"):
        read(Lmdb(), tmp_path, "train")
