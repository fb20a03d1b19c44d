import struct

import numpy as np
import pytest

from nvae_jax.data import pipeline
from nvae_jax.data.spec import DataError, DataSpec
from nvae_jax.data.tfrecords import TfRecords


def field(number, content):
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def example(image, label=3):
    """The bytes of a tf.train.Example in the layout of Glow."""
    features = {
        b"shape": field(3, field(1, b"".join(map(varint, image.shape)))),
        b"data": field(1, field(1, image.tobytes())),
        b"label": field(3, field(1, varint(label))),
    }
    entries = [field(1, field(1, name) + field(2, value)) for name, value in features.items()]
    return field(1, b"".join(entries))


def tfrecord(*records):
    return b"".join(struct.pack("<Q4x", len(record)) + record + bytes(4) for record in records)


def write_glow(directory, images):
    for split, part in (("train", images[:-2]), ("validation", images[-2:])):
        (directory / split).mkdir()
        halves = np.array_split(part, 2)
        for i, half in enumerate(halves):
            path = directory / split / f"{split}-r05-s-{i:04d}-of-0002.tfrecords"
            path.write_bytes(tfrecord(*(example(image) for image in half)))


def test_the_files_of_glow_are_read_at_the_given_size(tmp_path, colour_images, read):
    images = colour_images(11)
    write_glow(tmp_path, images)
    other = tmp_path / "train" / "train-r04-s-0000-of-0001.tfrecords"
    other.write_bytes(tfrecord(example(images[0, :16, :16])))
    np.testing.assert_array_equal(read(TfRecords(5), tmp_path, "train"), images[:9])
    np.testing.assert_array_equal(read(TfRecords(5), tmp_path, "validation"), images[9:])


def test_truncated_files_are_named(tmp_path, colour_images, read):
    write_glow(tmp_path, colour_images(11))
    path = tmp_path / "train" / "train-r05-s-0001-of-0002.tfrecords"
    content = path.read_bytes()
    size = len(content) // 4
    for length in range(1, len(content), 61):
        if length % size:
            path.write_bytes(content[:length])
            with pytest.raises(DataError, match=f"{path}: truncated in record {length // size}"):
                read(TfRecords(5), tmp_path, "train")


def test_damaged_files_are_named(tmp_path, colour_images, read):
    write_glow(tmp_path, colour_images(11))
    path = tmp_path / "validation" / "validation-r05-s-0000-of-0002.tfrecords"
    content = path.read_bytes()
    for position in (12, 13, 20, 40, 60):  # In the structure, before the pixels.
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            read(TfRecords(5), tmp_path, "validation")
        except DataError as error:
            assert f"{path} record 0" in str(error)


def test_files_of_something_else_are_refused(tmp_path, colour_images, read):
    write_glow(tmp_path, colour_images(11))
    path = tmp_path / "train" / "train-r05-s-0000-of-0002.tfrecords"
    path.write_bytes(tfrecord(b"", field(1, b"")))
    with pytest.raises(DataError, match="record 0: damaged, or not an image of Glow's layout"):
        read(TfRecords(5), tmp_path, "train")


def test_a_file_whose_first_record_is_damaged_is_read_from_the_second(tmp_path, colour_images):
    images = colour_images(11)
    write_glow(tmp_path, images)
    path = tmp_path / "train" / "train-r05-s-0000-of-0002.tfrecords"
    path.write_bytes(tfrecord(b"damaged", *(example(image) for image in images[1:5])))
    spec = DataSpec("imagenet32", dir=str(tmp_path), channels=3, skip_corrupt=True)
    batches = pipeline.eval_batches(spec, split="train", batch_size=9, seed=0)
    (batch,) = list(batches)
    assert batch["id"][~batch["mask"]].tolist() == [0] and batch["mask"].sum() == 8
