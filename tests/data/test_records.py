import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from nvae_jax.data import pipeline, record_writer, records
from nvae_jax.data.spec import DataError, DataSpec


@pytest.fixture
def splits(colour_images):
    return {"train": colour_images(40, 16), "validation": colour_images(7, 16, seed=1)}


@pytest.fixture
def prepared(tmp_path, splits, monkeypatch):
    """A prepared data set with several files for each split."""
    monkeypatch.setattr(record_writer, "_SHARD_BYTES", 10_000)
    record_writer.write(tmp_path / "folder", splits, name="folder")
    return tmp_path / "folder"


def test_images_are_read_as_they_were_written(prepared, splits):
    manifest = records.read_manifest(prepared)
    assert manifest["image_size"] == 16 and manifest["channels"] == 3 and manifest["skipped"] == 0
    assert len(manifest["splits"]["train"]) > 2
    assert set(records.Records().find(prepared)) == {"train", "validation"}
    for split, images in splits.items():
        opened = records.RecordImages(prepared, split)
        assert opened.shape == images.shape
        for i in range(len(images)):
            np.testing.assert_array_equal(opened[i], images[i])


def test_prepared_data_need_no_further_settings(prepared):
    spec = DataSpec("folder", dir=str(prepared), image_size=0, channels=0)
    spec = pipeline.describe(spec)
    assert spec.image_shape == (16, 16, 3)
    for dir in (prepared, prepared.parent):
        spec = DataSpec("folder", dir=str(dir), image_size=16, channels=3)
        iterator = pipeline.train_iterator(spec, batch_size=8, seed=0)
        assert next(iterator)["image"].shape == (8, 16, 16, 3)
        iterator.close()


def test_another_size_than_the_prepared_one_is_refused(prepared):
    spec = DataSpec("folder", dir=str(prepared), image_size=32, channels=3)
    with pytest.raises(DataError, match="16x16 .* image_size=32"):
        pipeline.train_iterator(spec, batch_size=8, seed=0)


def test_another_data_set_under_that_name_is_refused(prepared):
    with pytest.raises(DataError, match="holds the prepared data set 'folder', not 'cifar10'"):
        pipeline.num_examples(DataSpec("cifar10", dir=str(prepared)), "train")


def test_worker_processes_give_the_same_batches(prepared):
    spec = DataSpec("folder", dir=str(prepared), image_size=16, channels=3, workers=1)
    here = DataSpec("folder", dir=str(prepared), image_size=16, channels=3)
    for one in (spec, here):
        iterator = pipeline.train_iterator(one, batch_size=8, seed=0)
        one_batch = next(iterator)
        iterator.close()
        if one is spec:
            batch = one_batch
    np.testing.assert_array_equal(batch["image"], one_batch["image"])


def read_everything(directory):
    for split in records.Records().find(directory):
        images = records.RecordImages(directory, split)
        for i in range(len(images)):
            images[i]


def test_every_truncation_is_found_before_training(prepared):
    path = prepared / "train-00001.array_record"
    content = path.read_bytes()
    for length in range(0, len(content), 997):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"{path}: truncated, {length} bytes but"):
            read_everything(prepared)


def test_damaged_bytes_are_an_error_that_names_the_file_or_change_nothing(prepared, splits):
    path = prepared / "train-00001.array_record"
    content = path.read_bytes()
    used = np.flatnonzero(np.frombuffer(content, np.uint8))  # Much of a small file is padding.
    named = 0
    for position in np.random.default_rng(0).choice(used, 60, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            images = records.RecordImages(prepared, "train")
            read = np.stack([images[i] for i in range(len(images))])
        except DataError as error:
            assert "\n" not in str(error)
            named += str(path) in str(error)
        else:
            np.testing.assert_array_equal(read, splits["train"])
    assert named > 30


def test_a_missing_file_is_named(prepared):
    (prepared / "train-00001.array_record").unlink()
    with pytest.raises(DataError, match="train-00001.array_record is missing"):
        records.RecordImages(prepared, "train")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 2, "splits": {}, "image_size": 1, "channels": 3}']
)
def test_a_damaged_manifest_is_named(prepared, text):
    (prepared / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="manifest.json: .*prepare"):
        records.Records().find(prepared)


KEYS = ["name", "image_size", "channels", "skipped", "splits", "version"]


@pytest.mark.parametrize("key", [*KEYS, "file.name", "file.count", "file.bytes"])
def test_every_wrong_value_in_a_manifest_is_named(prepared, key):
    path = prepared / "manifest.json"
    original = path.read_text()
    for value in (None, -1, 2**70, 1e300, "../a", {}, [{}], {"train": {}}, "absent"):
        manifest = json.loads(original)
        part = manifest["splits"]["train"][1] if key.startswith("file.") else manifest
        part[key.removeprefix("file.")] = value
        if value == "absent":
            del part[key.removeprefix("file.")]
        if key == "name" and value == "../a":
            continue
        path.write_text(json.dumps(manifest))
        with pytest.raises(DataError, match="prepare the data set again") as caught:
            read_everything(prepared)
        assert str(prepared) in str(caught.value) and "\n" not in str(caught.value)


def test_a_manifest_with_a_wrong_count_is_refused(prepared):
    path = prepared / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"][1]["count"] = 10**12
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"train-00001.* images but the manifest says 10000000000"):
        records.RecordImages(prepared, "train")


def test_every_truncation_of_the_manifest_is_found(prepared):
    path = prepared / "manifest.json"
    text = path.read_text()
    for length in range(len(text) - 1):
        path.write_text(text[:length])
        with pytest.raises(DataError, match="manifest.json: damaged"):
            records.read_manifest(prepared)


class Failing:
    """Images of which the sixth cannot be read."""

    shape = (9, 16, 16, 3)

    def __len__(self):
        return 9

    def __getitem__(self, index):
        if index == 5:
            raise records.CorruptError("sixth: cannot be read")
        return np.full((16, 16, 3), index, np.uint8)


def test_a_failed_preparation_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="sixth: cannot be read"):
        record_writer.write(tmp_path / "made", {"train": Failing()}, name="folder")
    assert list(tmp_path.iterdir()) == []


def test_unreadable_images_can_be_skipped(tmp_path):
    manifest = record_writer.write(
        tmp_path / "made", {"train": Failing()}, name="folder", skip_corrupt=True
    )
    assert manifest["skipped"] == 1
    images = records.RecordImages(tmp_path / "made", "train")
    assert [int(images[i].max()) for i in range(len(images))] == [0, 1, 2, 3, 4, 6, 7, 8]


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="split 'train' is empty"):
        record_writer.write(
            tmp_path / "x", {"train": np.zeros((0, 4, 4, 3), np.uint8)}, name="folder"
        )
    assert not (tmp_path / "x").exists()


def test_images_of_several_shapes_are_refused(tmp_path, splits):
    splits["validation"] = splits["validation"][:, :8, :8]
    with pytest.raises(DataError, match=r"image 0 is \(8, 8, 3\), but others are \(16, 16, 3\)"):
        record_writer.write(tmp_path / "x", splits, name="folder")


def test_an_existing_folder_is_never_overwritten(prepared, splits):
    before = sorted(path.stat().st_mtime_ns for path in prepared.iterdir())
    with pytest.raises(DataError, match="already exists"):
        record_writer.write(prepared, splits, name="folder")
    assert sorted(path.stat().st_mtime_ns for path in prepared.iterdir()) == before


SLOW_WRITER = """
import pathlib, sys, time
import numpy as np
from nvae_jax.data import record_writer

class Slow:
    shape = (1000, 16, 16, 3)
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        if index == 3:
            print("writing", flush=True)
            time.sleep(60)
        return np.zeros((16, 16, 3), np.uint8)

record_writer.write(pathlib.Path(sys.argv[1]), {"train": Slow()}, name="folder")
"""


def test_a_killed_preparation_looks_incomplete_and_can_be_repeated(tmp_path, splits):
    target = tmp_path / "made"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_WRITER), str(target)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        assert process.stdout.readline() == b"writing\n"
        with pytest.raises(DataError, match="another process is preparing"):
            record_writer.write(target, splits, name="folder")
        process.send_signal(signal.SIGKILL)
    assert not target.exists() and any(tmp_path.iterdir())
    assert not any(records.Records().find(path) for path in tmp_path.iterdir())
    record_writer.write(target, splits, name="folder")
    read_everything(target)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_manifest_is_plain_json(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    counts = {
        split: sum(file["count"] for file in files) for split, files in manifest["splits"].items()
    }
    assert counts == {"train": 40, "validation": 7}
