"""The published files of CIFAR-10."""

import codecs
import pickle

import numpy as np
import pytest

from nvae_jax.data.cifar import Cifar
from nvae_jax.data.spec import DataError


def planes(images):
    """uint8 (N, H, W, 3) as CIFAR orders it: colour by colour, (N, 3 * H * W)."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_cifar_binary(directory, images):
    for i, part in enumerate(np.array_split(planes(images), 6)):
        labels = np.arange(len(part), dtype=np.uint8)[:, None] % 10
        name = f"data_batch_{i + 1}.bin" if i < 5 else "test_batch.bin"
        (directory / name).write_bytes(np.concatenate([labels, part], 1).tobytes())


def write_cifar_pickles(directory, images):
    for i, part in enumerate(np.array_split(planes(images), 6)):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        content = pickle.dumps({b"data": part, b"labels": [0] * len(part)}, protocol=2)
        (directory / name).write_bytes(content)


@pytest.mark.parametrize("write", [write_cifar_binary, write_cifar_pickles])
@pytest.mark.parametrize("folder", ["", "cifar-10-batches-bin", "cifar-10-batches-py"])
def test_both_formats_of_cifar10_are_read(write, folder, tmp_path, colour_images, read):
    images = colour_images(24)
    (tmp_path / folder).mkdir(exist_ok=True)
    write(tmp_path / folder, images)
    np.testing.assert_array_equal(read(Cifar(), tmp_path, "train"), images[:20])
    np.testing.assert_array_equal(read(Cifar(), tmp_path, "test"), images[20:])


def test_pickles_written_by_python_2_are_read(tmp_path, colour_images, read):
    images = colour_images(24)
    write_cifar_pickles(tmp_path, images)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    np.testing.assert_array_equal(read(Cifar(), tmp_path, "test"), images[20:])


def test_a_missing_file_is_named(tmp_path, colour_images, read):
    write_cifar_binary(tmp_path, colour_images(24))
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match="data_batch_3.bin: cannot be read"):
        read(Cifar(), tmp_path, "train")


@pytest.mark.parametrize("write", [write_cifar_binary, write_cifar_pickles])
def test_every_truncation_is_named(write, tmp_path, colour_images, read):
    write(tmp_path, colour_images(6))
    (path,) = tmp_path.glob("test_batch*")
    content = path.read_bytes()
    for length in [*range(0, len(content), 101), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"{path}: truncated"):
            read(Cifar(), tmp_path, "test")


def test_cifar_100_is_not_cifar_10(tmp_path, colour_images, read):
    write_cifar_binary(tmp_path, colour_images(6))
    path = tmp_path / "test_batch.bin"
    path.write_bytes(b"\x0b" + path.read_bytes()[1:])
    with pytest.raises(DataError, match="record 0 has label 11; not a CIFAR-10 file"):
        read(Cifar(), tmp_path, "test")


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, colour_images, capsys, read):
    write_cifar_pickles(tmp_path, colour_images(6))
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match=r"asks for builtins\.print.*refused"):
        read(Cifar(), tmp_path, "test")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "batch, message",
    [
        ({b"labels": [1]}, "no table of pixels"),
        ({b"data": np.zeros((2, 7), np.uint8)}, "rows of 7 values"),
        ({b"data": np.zeros((2, 3072))}, "no table of pixels"),
        ([1, 2], "damaged pickle"),
    ],
    ids=["no data", "rows", "floats", "list"],
)
def test_pickles_of_something_else_are_refused(batch, message, tmp_path, colour_images, read):
    write_cifar_pickles(tmp_path, colour_images(6))
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match=f"test_batch: .*{message}"):
        read(Cifar(), tmp_path, "test")


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Calls(np.ndarray, (10**5, 3072), np.dtype("u1")), "claims 307200000 bytes of pixels"),
        (Calls(codecs.encode, "text", "rot13"), "encoding 'rot13': refused"),
    ],
    ids=["more than there is", "another encoding"],
)
def test_pickles_of_arrays_with_a_false_shape_are_refused(data, message, tmp_path, read):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps({"data": data}))
    with pytest.raises(DataError, match=f"data_batch_1: .*{message}"):
        read(Cifar(), tmp_path, "train")
