"""Reads CIFAR-10's own files: the binary version, and the pickles of the Python version."""

from __future__ import annotations

import io
import pathlib
import pickle
from collections.abc import Mapping

import numpy as np

from nvae_jax import files
from nvae_jax.data.spec import DataError

_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_PIXELS = 3 * 32 * 32
_LARGEST = 2**28  # bytes of a file

# Everything that a pickled NumPy array needs. Other names in a pickle could run any code.
_ALLOWED = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    # NumPy has moved these between modules, and pickles name the old modules.
    "_reconstruct": np.zeros(0).__reduce__()[0],
    "_frombuffer": np.zeros(0).__reduce_ex__(5)[0],
}


class Cifar:
    """The format of a folder with data_batch_1 to 5 and test_batch, with or without ".bin"."""

    looks_like = "data_batch_1.bin to data_batch_5.bin and test_batch.bin (or the Python version)"

    def find(self, directory: pathlib.Path) -> Mapping[str, list[pathlib.Path]]:
        """Finds the files of each split of which at least one exists."""
        found = {}
        for folder in _FOLDERS:
            for end in (".bin", ""):
                for split, names in _BATCHES.items():
                    paths = [directory / folder / f"{name}{end}" for name in names]
                    if any(path.is_file() for path in paths):
                        found.setdefault(split, paths)
        return found

    def open(
        self, found: list[pathlib.Path], split: str, channels: int, max_value: int = 0
    ) -> np.ndarray:
        """Reads all images of a split, uint8 (N, 32, 32, 3)."""
        del split, channels, max_value
        planes = np.concatenate([_read(path) for path in found])
        return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _read(path: pathlib.Path) -> np.ndarray:
    """Reads the pixels of one file, uint8 (N, 3072), one colour plane after the other."""
    try:
        with files.open_regular(path) as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _LARGEST:
        raise DataError(f"{path}: more than {_LARGEST} bytes; a batch of CIFAR-10 has 31 million")
    if path.suffix == ".bin":
        return _read_binary(path, content)
    return _read_pickle(path, content)


def _read_binary(path: pathlib.Path, content: bytes) -> np.ndarray:
    records, rest = divmod(len(content), 1 + _PIXELS)
    if rest or not records:
        raise DataError(f"{path}: truncated in record {records} ({len(content)} bytes)")
    table = np.frombuffer(content, np.uint8).reshape(records, 1 + _PIXELS)
    if table[:, 0].max() > 9:
        bad = int(table[:, 0].argmax())
        raise DataError(f"{path}: record {bad} has label {table[bad, 0]}; not a CIFAR-10 file")
    return table[:, 1:]


def _read_pickle(path: pathlib.Path, content: bytes) -> np.ndarray:
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        pixels = batch.get(b"data", batch.get("data"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # A damaged pickle can raise almost anything.
        raise DataError(f"{path}: truncated or damaged pickle ({error})") from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise DataError(f"{path}: has no table of pixels under 'data'")
    if pixels.nbytes > len(content):
        raise DataError(f"{path}: claims {pixels.nbytes} bytes of pixels, more than it has")
    if pixels.shape[1] != _PIXELS or not len(pixels):
        raise DataError(f"{path}: rows of {pixels.shape[1]} values, but images have {_PIXELS}")
    return pixels


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if module.split(".")[0] == "numpy" and name in _ALLOWED:
            return _ALLOWED[name]
        if (module, name) == ("_codecs", "encode"):  # Bytes written by Python 2.
            return _encode_latin1
        raise DataError(f"pickle asks for {module}.{name}, which is not an array: refused")


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise DataError(f"pickle asks for the encoding {encoding!r}: refused")
    return text.encode("latin1")
