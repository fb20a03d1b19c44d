import dataclasses
import gzip
import importlib.util

import numpy as np
import pytest

from nvae_jax.data import pipeline, records, sources, splits
from nvae_jax.data.prepare import prepare
from nvae_jax.data.spec import DataError, DataSpec


def test_a_folder_of_pictures_is_prepared_without_changing_them(pictures, tmp_path):
    said = prepare("folder", str(tmp_path / "out"), manual_dir=str(pictures), image_size=16)
    assert "16x16x3" in said and f"--config.data.dir={tmp_path}/out/folder" in said
    before = DataSpec("folder", dir=str(pictures), image_size=16, channels=3)
    after = pipeline.describe(
        DataSpec("folder", dir=str(tmp_path / "out"), image_size=0, channels=0)
    )
    assert after.image_shape == (16, 16, 3)
    for split in ("train", "validation"):
        raw, prepared = (splits.open_images(spec, split) for spec in (before, after))
        assert len(raw) == len(prepared)
        for i in range(len(raw)):
            np.testing.assert_array_equal(raw[i], prepared[i])


def test_size_and_channels_default_to_those_of_the_pictures(pictures, tmp_path):
    prepare("folder", str(tmp_path / "a"), manual_dir=str(pictures))
    assert records.read_manifest(tmp_path / "a" / "folder")["image_size"] == 16
    prepare("folder", str(tmp_path / "b"), manual_dir=str(pictures), image_size=8, channels=1)
    manifest = records.read_manifest(tmp_path / "b" / "folder")
    assert manifest["image_size"] == 8 and manifest["channels"] == 1


def test_preparing_again_changes_nothing(pictures, tmp_path):
    settings = {"manual_dir": str(pictures), "image_size": 16}
    prepare("folder", str(tmp_path), **settings)
    written = (tmp_path / "folder" / "manifest.json").stat()
    assert prepare("folder", str(tmp_path), **settings).startswith("Nothing to do")
    now = (tmp_path / "folder" / "manifest.json").stat()
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    with pytest.raises(DataError, match="already prepared, at size 16"):
        prepare("folder", str(tmp_path), manual_dir=str(pictures), image_size=32)


def test_corrupt_pictures_are_an_error_or_are_counted(pictures, tmp_path):
    next(pictures.rglob("003.png")).write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    next(pictures.rglob("006.png")).write_bytes(b"")
    with pytest.raises(DataError, match="^[12] image.*003.png: .*--skip_corrupt$"):
        prepare("folder", str(out), manual_dir=str(pictures), image_size=16)
    assert list(out.iterdir()) == []
    said = prepare("folder", str(out), manual_dir=str(pictures), image_size=16, skip_corrupt=True)
    assert "2 unreadable ones skipped" in said


def test_padding_is_not_part_of_prepared_data(idx_dir, tmp_path, grey_images):
    prepare("mnist", str(tmp_path / "out"), manual_dir=str(idx_dir))
    spec = DataSpec("mnist", dir=str(tmp_path / "out"), padding=2)
    images = splits.open_images(spec, "test")
    np.testing.assert_array_equal(np.stack([images[i] for i in range(7)])[..., 0], grey_images[23:])
    assert pipeline.preview(spec, "test", 2).shape == (2, 32, 32, 1)


def test_prepared_stacked_digits_are_not_stacked_again(idx_dir, tmp_path):
    prepare("stacked_mnist", str(tmp_path / "out"), manual_dir=str(idx_dir))
    raw, prepared = (
        splits.open_images(DataSpec("stacked_mnist", dir=str(dir), channels=3), "train")
        for dir in (idx_dir, tmp_path / "out")
    )
    np.testing.assert_array_equal(raw[5], prepared[5])


@pytest.mark.parametrize("name", sorted(sources.SOURCES))
def test_what_cannot_be_prepared_is_an_error_that_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)  # No TensorFlow.
    source = sources.get_source(name)
    if not source.by_hand and not source.tfds:
        assert prepare(name, str(tmp_path)).startswith("Nothing to do: digits is on this machine")
        return
    monkeypatch.setitem(sources.SOURCES, name, dataclasses.replace(source, place=""))
    with pytest.raises(DataError) as caught:
        prepare(name, str(tmp_path / "out"))
    message = str(caught.value)
    assert "\n" not in message and name in message
    if source.by_hand:
        assert f"--name={name} --manual_dir=MANUAL_DIR" in message and source.by_hand in message
    else:
        assert (
            "pip install 'nvae_jax[download]'" in message
            and source.formats[0].looks_like in message
        )
    assert not (tmp_path / "out" / name).exists()


def test_lsun_is_prepared_at_the_given_size(tmp_path, encode, colour_images):
    lmdb = pytest.importorskip("lmdb")
    for split in ("train", "val"):
        path = tmp_path / f"church_outdoor_{split}_lmdb"
        path.mkdir()
        environment = lmdb.open(str(path), map_size=2**22)
        with environment.begin(write=True) as transaction:
            for i, image in enumerate(colour_images(5, 40)):
                transaction.put(b"key%d" % i, encode(image[:, :30], "WEBP"))
        environment.close()
    prepare("lsun_church", str(tmp_path / "out"), manual_dir=str(tmp_path), image_size=16)
    assert records.read_manifest(tmp_path / "out" / "lsun_church")["image_size"] == 16


def test_a_folder_without_files_of_the_data_set_is_an_error(tmp_path):
    with pytest.raises(DataError, match=f"ffhq256: none of its files is in {tmp_path}; download"):
        prepare("ffhq256", str(tmp_path / "out"), manual_dir=str(tmp_path))


def test_a_missing_manual_dir_is_an_error(tmp_path):
    with pytest.raises(DataError, match="--manual_dir=.*absent: no such folder"):
        prepare("cifar10", str(tmp_path), manual_dir=str(tmp_path / "absent"))


def test_an_unknown_name_is_an_error(tmp_path):
    with pytest.raises(DataError, match="unknown data set 'cifar11'; known: .*cifar10"):
        prepare("cifar11", str(tmp_path))


@pytest.mark.usefixtures("no_bucket")
def test_downloadable_data_sets_are_prepared_by_tensorflow_datasets(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    with tfds.testing.mock_data():
        said = prepare("cifar10", str(tmp_path))
    assert said.startswith("Prepared cifar10 with tensorflow-datasets")


@pytest.mark.usefixtures("no_bucket")
def test_a_failed_download_is_a_one_line_error(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())

    def fail(*_, **__):
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(DataError, match="could not prepare cifar10: no route to host$"):
        prepare("cifar10", str(tmp_path))


def test_ffhq_is_split_nine_to_one(pictures, tmp_path):
    prepare("ffhq256", str(tmp_path / "out"), manual_dir=str(pictures), image_size=16)
    spec = DataSpec("ffhq256", dir=str(tmp_path / "out"), image_size=16, channels=3)
    assert pipeline.num_examples(spec, "train") == 54
    assert pipeline.num_examples(spec, "validation") == 6
    assert pipeline.resolve_split(spec, "test") == "validation"


def test_a_truncated_gzip_file_is_an_error_and_nothing_is_written(idx_dir, tmp_path):
    path = idx_dir / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()))[:-20])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz: truncated"):
        prepare("mnist", str(tmp_path / "out"), manual_dir=str(idx_dir))
    assert not (tmp_path / "out").exists()
