import gzip
import os
import pathlib
import struct

import numpy as np
import pytest

from nvae_jax.data import idx
from nvae_jax.data.spec import DataError

FASHION = "/usr/share/datasets/fashion-mnist"


def write(path, content):
    path.write_bytes(content)
    return path


def test_plain_and_gzipped_files_are_read(tmp_path, grey_images, idx_bytes):
    plain = write(tmp_path / "plain", idx_bytes(grey_images))
    zipped = write(tmp_path / "zipped.gz", gzip.compress(idx_bytes(grey_images)))
    misnamed = write(tmp_path / "unpacked.gz", idx_bytes(grey_images))
    for path in (plain, zipped, misnamed):
        np.testing.assert_array_equal(idx.read_images(path), grey_images[..., None])


@pytest.mark.parametrize(
    "name",
    [
        "train-images-idx3-ubyte",
        "train-images-idx3-ubyte.gz",
        "train-images.idx3-ubyte",
        "train-images.idx3-ubyte.gz",
    ],
)
def test_every_usual_file_name_is_found(tmp_path, name):
    write(tmp_path / name, b"")
    assert idx.Idx().find(tmp_path) == {"train": tmp_path / name}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_every_truncation_is_a_one_line_error(tmp_path, pack, idx_bytes):
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 4), np.uint8)
    content = pack(idx_bytes(images))
    for length in range(len(content)):
        path = write(tmp_path / "cut", content[:length])
        with pytest.raises(DataError, match="cut: .*(truncated|damaged)") as caught:
            idx.read_images(path)
        assert "\n" not in str(caught.value)


def test_damaged_bytes_raise_only_the_documented_error(tmp_path, idx_bytes):
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 4), np.uint8)
    content = gzip.compress(idx_bytes(images))
    random = np.random.default_rng(2)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= int(random.integers(1, 256))
        try:
            read = idx.read_images(write(tmp_path / "damaged", bytes(damaged)))
        except DataError as error:
            assert "damaged: " in str(error)
        else:  # Only gzip's own name-and-time fields have no checksum.
            np.testing.assert_array_equal(read, images[..., None])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x89PNG\r\n\x1a\n" * 4, "not an IDX file"),
        (struct.pack(">HBB3I", 0, 0x0D, 3, 1, 1, 1) + bytes(4), "float, but images must be"),
        (struct.pack(">HBBI", 0, 8, 1, 12) + bytes(12), r"1 dimension\(s\)"),
        (struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28), "is empty"),
        (struct.pack(">HBB3I", 0, 8, 3, 1, 2, 2) + bytes(5), "with bytes after the last image"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**16, 2**16) + bytes(5), "claims to unpack"),
        (struct.pack(">HBB3I", 0, 8, 3, 9, 28, 28) + bytes(5), "truncated, 5 of 7056"),
    ],
    ids=["png", "float", "labels", "empty", "trailing", "huge", "short"],
)
def test_wrong_files_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=f"wrong: .*{message}"):
        idx.read_images(write(tmp_path / "wrong", content))


@pytest.mark.parametrize("count", [2, 2**21])
def test_gzip_bombs_are_refused(tmp_path, count, monkeypatch):
    """Bytes after the last image are not unpacked, nor more than the largest allowed file."""
    unpacked, read = [], gzip.GzipFile.read

    def counted(self, size=-1):
        content = read(self, size)
        unpacked.append(len(content))
        return content

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    content = gzip.compress(struct.pack(">HBB3I", 0, 8, 3, count, 28, 28) + bytes(2**24))
    with pytest.raises(DataError, match="bomb.gz: (is longer than|claims to unpack to 1644167168)"):
        idx.read_images(write(tmp_path / "bomb.gz", content))
    assert sum(unpacked) < 2000


def test_a_fifo_in_place_of_a_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DataError, match="fifo: cannot be read .is a FIFO"):
        idx.read_images(tmp_path / "fifo")


def test_directory_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        idx.read_images(tmp_path)


@pytest.mark.skipif(not os.path.isdir(FASHION), reason="Debian's dataset-fashion-mnist is absent")
@pytest.mark.parametrize("split, count", [("train", 60_000), ("test", 10_000)])
def test_the_fashion_mnist_of_debian_is_read(split, count):
    images = idx.read_images(idx.Idx().find(pathlib.Path(FASHION))[split])
    assert images.shape == (count, 28, 28, 1)
    # The mean brightness that is published for normalising this data set: 0.2860.
    assert abs(images.mean() / 255 - 0.2860) < 2e-3
