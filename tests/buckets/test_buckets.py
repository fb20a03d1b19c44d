"""Paths in buckets, where object stores differ from file systems."""

import fsspec
import numpy as np
import pytest

from nvae_jax import buckets, files, outputs, paths, pictures
from nvae_jax.buckets import BucketError, BucketPath

ABSENT = BucketPath("gs://absent/run")


def test_a_folder_exists_when_an_object_has_its_name_as_prefix(bucket):
    (bucket / "folder").mkdir(parents=True)
    assert not bucket.exists() and not bucket.is_dir() and list(bucket.iterdir()) == []
    (bucket / "folder" / "file").write_text("é")
    assert bucket.is_dir() and not bucket.is_file() and (bucket / "folder" / "file").is_file()
    assert list(bucket.iterdir()) == [bucket / "folder"]
    assert (bucket / "folder" / "file").read_text() == "é"
    assert (bucket / "folder" / "file").stat().st_size == 2
    (bucket / "empty").touch()
    assert sorted(path.name for path in bucket.iterdir()) == ["empty", "folder"]
    (bucket / "empty").unlink()
    (bucket / "empty").unlink(missing_ok=True)
    files.remove_tree(bucket / "folder")
    files.remove_tree(bucket / "folder")
    assert not bucket.exists()


def test_changes_by_other_processes_are_visible(bucket):
    (bucket / "b").touch()
    assert not (bucket / "a").exists() and list(bucket.iterdir()) == [bucket / "b"]
    other = fsspec.filesystem("gcs", skip_instance_cache=True)
    other.pipe_file(str(bucket / "a"), b"1")
    assert (bucket / "a").exists() and sorted(bucket.iterdir()) == [bucket / "a", bucket / "b"]
    other.rm_file(str(bucket / "b"))
    assert not (bucket / "b").exists() and list(bucket.iterdir()) == [bucket / "a"]
    other.rm_file(str(bucket / "a"))
    assert not (bucket / "a").exists() and list(bucket.iterdir()) == []


def test_only_one_process_can_create_an_object(bucket):
    (bucket / "lock").create(b"one")
    with pytest.raises(FileExistsError):
        (bucket / "lock").create(b"two")
    assert (bucket / "lock").read_bytes() == b"one"


def test_appending_is_an_error(bucket):
    (bucket / "rows").write_text("1\n")
    with pytest.raises(ValueError, match="objects in buckets cannot be appended to"):
        (bucket / "rows").open("a")
    assert (bucket / "rows").read_text() == "1\n"


def test_a_file_is_written_whole_or_not_at_all(bucket):
    with pytest.raises(ZeroDivisionError), files.atomic_write(bucket / "file.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("half")
        raise ZeroDivisionError
    assert not bucket.exists()
    files.write_json(bucket / "file.json", {"a": 1})
    assert files.open_regular(bucket / "file.json").read() == b'{\n  "a": 1\n}\n'


def test_a_growing_file_is_uploaded_whole_at_each_sync(bucket):
    (bucket / "rows").write_text("1\n")
    synced = files.SyncedFolder(bucket)
    rows = synced.fetch("rows")
    with open(rows, "a") as file:
        file.write("2\n")
    assert (bucket / "rows").read_text() == "1\n"
    synced.upload()
    assert (bucket / "rows").read_text() == "1\n2\n"
    (bucket / "rows").unlink()
    synced.upload()  # this file has not changed
    assert not (bucket / "rows").exists()
    rows.write_text("3\n4\n5\n")
    synced.close()
    assert (bucket / "rows").read_text() == "3\n4\n5\n" and not rows.exists()


def test_a_missing_bucket_is_an_error_that_names_it(store):
    calls = (
        ABSENT.exists,
        ABSENT.is_file,
        ABSENT.is_dir,
        lambda: list(ABSENT.iterdir()),
        ABSENT.read_text,
        lambda: ABSENT.write_text("x"),
        lambda: ABSENT.create(b""),
        lambda: ABSENT.open("rb"),
        lambda: buckets.check(ABSENT),
        lambda: paths.check_writable(ABSENT / "a.png", "--out"),
    )
    for call in calls:
        with pytest.raises(BucketError, match="there is no bucket gs://absent: make it") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_missing_object_is_an_error_that_names_it(bucket):
    with pytest.raises(FileNotFoundError, match=f"no such object: '{bucket}/a'"):
        (bucket / "a").read_text()


def test_results_of_other_settings_are_not_overwritten(bucket):
    written = [bucket / "a.npz", bucket / "a.png", bucket / "a.json"]
    outputs.check(written, {"seed": 1})
    pictures.save_arrays(written[0], seed=1)
    pictures.save_png(written[1], np.zeros((4, 4, 1), np.uint8), {"seed": 1})
    files.write_json(written[2], {"seed": 1})
    outputs.check(written, {"seed": 1})
    for path in written:
        with pytest.raises(ValueError, match=r"a\.\w+ holds another result: seed is 1 in the file"):
            outputs.check([path], {"seed": 2})
    with pytest.raises(ValueError, match="is an input, so it cannot be an output"):
        outputs.check(written, {"seed": 1}, inputs=[bucket / "a.npz"])
    assert sorted(path.name for path in bucket.iterdir()) == ["a.json", "a.npz", "a.png"]
