"""Reads LMDB databases: those of the published NVAE code, and those of LSUN."""

from __future__ import annotations

import functools
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from nvae_jax import extras, files
from nvae_jax.data import images as images_lib
from nvae_jax.data.spec import CorruptError, DataError

_PATTERNS = {
    "train": ("train.lmdb", "*_train_lmdb"),
    "validation": ("validation.lmdb", "*_val_lmdb"),
    "test": ("test.lmdb", "*_test_lmdb"),
}


class Lmdb:
    """The format of a folder with train.lmdb and validation.lmdb (or LSUN's *_train_lmdb).

    Records are encoded images, or the raw bytes of square colour images. Keys are decimal numbers
    from 0, or arbitrary.
    """

    looks_like = "train.lmdb and validation.lmdb"

    def find(self, directory: pathlib.Path) -> Mapping[str, pathlib.Path]:
        """Finds the database of each split."""
        found = {}
        for split, patterns in _PATTERNS.items():
            paths = [path for pattern in patterns for path in sorted(directory.glob(pattern))]
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                raise DataError(f"{directory}: has {names}; only one can be the {split} split")
            if paths:
                found[split] = paths[0]
        return found

    def open(
        self, found: pathlib.Path, split: str, channels: int, max_value: int = 0
    ) -> LmdbImages:
        """Opens a split; with `channels` 0 it has as many channels as its first image."""
        del split
        return LmdbImages(found, channels, max_value)


class LmdbImages:
    """The images of one database."""

    def __init__(self, path: pathlib.Path, channels: int, max_value: int = 0):
        self._path, self._max_value = path, max_value
        self._keys = _keys(path)
        if not len(self._keys):
            raise DataError(f"{path}: has no records")
        self._is_raw = not images_lib.is_encoded(self._record(0))
        self.shape = (len(self._keys), 0, 0, channels)
        self.shape = (len(self._keys), *images_lib.probe(self))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        record, where = self._record(index), f"{self._path} record {self._name(index)}"
        if self._is_raw:
            return _raw_image(record, where)
        return images_lib.decode(record, where, self.shape[-1], max_value=self._max_value)

    def _record(self, index: int) -> bytes:
        with _environment(str(self._path)).begin() as transaction:
            record = transaction.get(self._keys[index])
        if record is None:
            raise CorruptError(f"{self._path}: has no record {self._name(index)}")
        return record

    def _name(self, index: int) -> str:
        return self._keys[index].decode("ascii", "backslashreplace")


class _Numbers:
    """The keys "0", "1", ..., without storing a list of millions of them."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        return str(index).encode()


def _keys(path: pathlib.Path):
    _check_size(path)
    environment = _environment(str(path))
    count = environment.stat()["entries"]
    with environment.begin() as transaction:
        if all(transaction.get(str(i).encode()) is not None for i in (0, count - 1)):
            return _Numbers(count)
        with transaction.cursor() as cursor:
            return list(cursor.iternext(keys=True, values=False))


# LMDB allows one open environment per file and process; worker processes open their own.
@functools.cache
def _environment(path: str):
    lmdb = extras.load("lmdb", "lmdb", "an LMDB database")
    try:
        return lmdb.open(
            path,
            subdir=os.path.isdir(path),
            readonly=True,
            lock=False,
            readahead=False,
            meminit=False,
        )
    except lmdb.Error as error:
        raise DataError(f"{path}: not an LMDB database, or damaged ({error})") from error


def _check_size(path: pathlib.Path):
    """Raises DataError for a truncated file, because LMDB would crash the process when reading."""
    file = path / "data.mdb" if path.is_dir() else path
    try:
        files.check_regular(file)
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    environment = _environment(str(path))
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:
        raise DataError(f"{file}: truncated, {size} of {needed} bytes")


def _raw_image(record: bytes, where: str) -> np.ndarray:
    side = math.isqrt(len(record) // 3)
    if not side or 3 * side * side != len(record):
        raise CorruptError(f"{where}: {len(record)} bytes are not a square colour image")
    return np.frombuffer(record, np.uint8).reshape(side, side, 3)
