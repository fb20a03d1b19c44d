"""Locks and errors of S3, which moto simulates; test_runs.py has a run in S3."""

import pytest

from nvae_jax import api, bucket_lock
from nvae_jax.buckets import BucketError, BucketPath


def test_a_lock_in_s3_is_held_by_one_process(s3):
    folder = s3 / "locked" / ".lock"
    with bucket_lock.locked(folder, "somebody trains there"):
        with pytest.raises(FileExistsError):
            (folder / "1").create(b"")
        with pytest.raises(ValueError, match="somebody trains there"):
            with bucket_lock.locked(folder, "somebody trains there"):
                pass
    with bucket_lock.locked(folder, "somebody trains there"):
        assert [path.name for path in folder.iterdir()] == ["2"]


def test_a_missing_bucket_is_an_error_that_names_it(s3):
    with pytest.raises(BucketError, match="there is no bucket s3://absent: make it first"):
        api.load("s3://absent/run")
    with pytest.raises(BucketError, match="there is no bucket s3://absent: make it first"):
        BucketPath("s3://absent/run").write_text("x")
