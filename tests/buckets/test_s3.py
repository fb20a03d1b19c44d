"""S3, as moto answers for it; a run there is in test_runs.py."""

import pytest

from nvae_jax import api, bucket_lock
from nvae_jax.buckets import BucketError, BucketPath


def test_one_writer(s3):
    folder = s3 / "locked" / ".lock"
    with bucket_lock.locked(folder, "somebody trains there"):
        with pytest.raises(FileExistsError):
            (folder / "1").create(b"")
        with pytest.raises(ValueError, match="somebody trains there"):
            with bucket_lock.locked(folder, "somebody trains there"):
                pass
    with bucket_lock.locked(folder, "somebody trains there"):
        assert [path.name for path in folder.iterdir()] == ["2"]


def test_a_bucket_that_is_not_there(s3):
    with pytest.raises(BucketError, match="there is no bucket s3://absent: make it first"):
        api.load("s3://absent/run")
    with pytest.raises(BucketError, match="there is no bucket s3://absent: make it first"):
        BucketPath("s3://absent/run").write_text("x")
