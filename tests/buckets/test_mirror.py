"""Local copies of files in buckets."""

import shutil

import numpy as np
import pytest
from PIL import Image

from nvae_jax import files, inputs, mirror
from nvae_jax.data import pipeline, prepare, splits
from nvae_jax.data.spec import DataError, DataSpec


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(splits, "_copies", {})
    return tmp_path / "cache"


def test_a_local_path_is_returned_as_it_is(tmp_path):
    assert mirror.local(tmp_path / "absent") == tmp_path / "absent"


def test_the_copy_of_a_folder_is_updated(bucket, capsys):
    for name in ("a.txt", "deep/b [1].txt", "deep/c.txt"):
        (bucket / name).write_text(name)
    copy = mirror.local(bucket)
    assert "3 file(s)" in capsys.readouterr().err
    assert (copy / "deep" / "b [1].txt").read_text() == "deep/b [1].txt"
    assert mirror.local(bucket) == copy and capsys.readouterr().err == ""
    (bucket / "deep" / "b [1].txt").write_text("other")
    (bucket / "deep" / "c.txt").unlink()
    mirror.local(bucket)
    assert "1 file(s)" in capsys.readouterr().err
    assert (copy / "deep" / "b [1].txt").read_text() == "other" and (copy / "a.txt").exists()
    assert not (copy / "deep" / "c.txt").exists()
    assert not mirror.local(bucket / "absent").exists()


def test_an_interrupted_download_is_continued(bucket, monkeypatch, capsys):
    for number in range(5):
        (bucket / str(number)).write_text("x")
    monkeypatch.setattr(mirror, "FILES_PER_DOWNLOAD", 2)
    download, calls = mirror._download, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        download(*arguments)

    monkeypatch.setattr(mirror, "_download", failing)
    with pytest.raises(KeyboardInterrupt):
        mirror.local(bucket)
    capsys.readouterr()
    assert len(list(mirror.local(bucket).iterdir())) == 5
    assert "3 file(s)" in capsys.readouterr().err


def test_a_download_that_does_not_fit_the_disk_is_refused(bucket, monkeypatch):
    (bucket / "a").write_text("xyz")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(ValueError, match=r"takes 3e-09 GB, and .* has 0 GB left"):
        mirror.local(bucket)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((8, 8), 10 * number, np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
    return folder


def test_data_sets_are_read_from_buckets(bucket, pictures, tmp_path):
    """Pictures and data prepared from them give the same batches as local files."""
    prepare.prepare("folder", str(tmp_path / "prepared"), manual_dir=str(pictures), image_size=8)
    for name, folder in (("raw", pictures), ("prepared", tmp_path / "prepared")):
        for file in filter(lambda path: path.is_file(), folder.rglob("*")):
            (bucket / name / str(file.relative_to(folder))).upload(file)

    def batch(place):
        spec = DataSpec("folder", dir=str(place), image_size=8)
        return next(pipeline.train_iterator(spec, batch_size=3, seed=0))["image"]

    np.testing.assert_array_equal(batch(bucket / "raw"), batch(pictures))
    np.testing.assert_array_equal(batch(bucket / "prepared"), batch(tmp_path / "prepared"))
    with pytest.raises(DataError, match=f"is not in {bucket}/absent/folder or {bucket}/absent"):
        batch(bucket / "absent")


def test_images_and_arrays_are_read_from_buckets(bucket, pictures, tmp_path):
    (bucket / "0.png").upload(pictures / "train" / "0.png")
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8, 1), np.uint8))
    (bucket / "a.npz").upload(tmp_path / "a.npz")
    assert inputs.load(str(bucket / "0.png"))[0].shape == (8, 8, 1)
    assert inputs.load(bucket / "a.npz").shape == (2, 8, 8, 1)
    assert inputs.load_arrays(bucket / "a.npz")["images"].shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="there is no file"):
        inputs.load(bucket / "absent.npz")
