"""Runs in S3, as moto answers for it."""

import numpy as np
import pytest

from nvae_jax import api, bucket_lock, train
from nvae_jax.buckets import BucketError, BucketPath
from nvae_jax.checkpoint_files import steps
from tests.buckets.test_runs import config_for, rows


def test_one_writer(s3):
    folder = s3 / "locked" / ".lock"
    with bucket_lock.held(folder, "somebody trains there"):
        with pytest.raises(FileExistsError):
            (folder / "1").create(b"")
        with pytest.raises(ValueError, match="somebody trains there"):
            with bucket_lock.held(folder, "somebody trains there"):
                pass
    with bucket_lock.held(folder, "somebody trains there"):
        assert [path.name for path in folder.iterdir()] == ["2"]


def test_a_bucket_that_is_not_there(s3):
    with pytest.raises(BucketError, match="there is no bucket s3://absent: make it first"):
        api.load("s3://absent/run")
    with pytest.raises(BucketError, match="there is no bucket s3://absent: make it first"):
        BucketPath("s3://absent/run").write_text("x")


def test_a_run_is_resumed(s3, tmp_path, capsys):
    """In two starts, as one run in a folder."""
    workdir = s3 / "run"
    train.train(config_for(num_steps=4), workdir)
    train.train(None, workdir, {"train.num_steps": 7}, extend=True)
    assert "resumed at step 4" in capsys.readouterr().out
    assert steps(workdir / "checkpoints") == [6, 7]
    train.train(config_for(num_steps=4), tmp_path / "run")
    train.train(None, tmp_path / "run", {"train.num_steps": 7}, extend=True)
    texts = [(folder / "metrics.jsonl").read_text() for folder in (workdir, tmp_path / "run")]
    assert rows(texts[0]) == rows(texts[1]) and len(rows(texts[0])) == 7
    one, other = api.load(workdir), api.load(tmp_path / "run")
    np.testing.assert_array_equal(one.sample(2, seed=1), other.sample(2, seed=1))
