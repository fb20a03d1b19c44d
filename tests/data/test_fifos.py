"""A FIFO in place of a file is refused by every format, without waiting for its content."""

import os

import pytest

from nvae_jax.data.celeba import CelebA
from nvae_jax.data.cifar import Cifar
from nvae_jax.data.lmdb_folder import Lmdb
from nvae_jax.data.npz import Npz
from nvae_jax.data.spec import DataError
from nvae_jax.data.tfrecords import TfRecords


@pytest.mark.parametrize(
    ("form", "fifo", "files"),
    [
        (CelebA(), "list_eval_partition.txt", ["img_align_celeba/000001.jpg"]),
        (Cifar(), "data_batch_1.bin", ["data_batch_2.bin"]),
        (Lmdb(), "train.lmdb", []),
        (Lmdb(), "train.lmdb/data.mdb", []),
        (Npz(), "all.npz", []),
        (TfRecords(5), "train/x-r05-s-0.tfrecords", []),
    ],
)
def test_a_fifo_in_place_of_a_file_is_refused_without_waiting(form, fifo, files, tmp_path, read):
    if isinstance(form, Lmdb):
        pytest.importorskip("lmdb")
    for name in (fifo, *files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    for name in files:
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / fifo)
    with pytest.raises(DataError, match=f"{fifo}.*is a FIFO, not a file"):
        read(form, tmp_path, "train")
