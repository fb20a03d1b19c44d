"""MNIST's file format: a magic number, big-endian sizes, then raw bytes; often gzipped.

The first two bytes are zero, the third gives the type (8 is uint8), the fourth the number of
dimensions; one 32-bit size per dimension follows.
"""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

from nvae_jax import files
from nvae_jax.data.limits import check_unpacked_size
from nvae_jax.data.spec import DataError

_UINT8 = 0x08
_TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float", 0x0E: "double"}

_HEADER_BYTES = 16  # of three dimensions

_STEMS = {"train": "train", "test": "t10k"}


class Idx:
    """The format of a folder with MNIST's files, under any of the names in use."""

    looks_like = "IDX files (train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz)"

    def find(self, directory: pathlib.Path) -> Mapping[str, pathlib.Path]:
        """The image file of each split that is there."""
        found = {split: _find(directory, stem) for split, stem in _STEMS.items()}
        return {split: path for split, path in found.items() if path}

    def open(
        self, found: pathlib.Path, split: str, channels: int, max_value: int = 0
    ) -> np.ndarray:
        """All images of a split, uint8 (N, H, W, 1)."""
        del split, channels, max_value
        return read_images(found)


def _find(directory: pathlib.Path, stem: str) -> pathlib.Path | None:
    names = [f"{stem}-images{dash}idx3-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    return next((directory / name for name in names if (directory / name).is_file()), None)


def read_images(path: str | pathlib.Path) -> np.ndarray:
    """All images of an IDX file as uint8 (N, H, W, 1).

    Raises DataError naming the file and its fault: not an IDX file, another type, not three
    dimensions, an empty set, truncated, damaged, or longer than it says.
    """
    path = pathlib.Path(path)
    try:
        with files.open_regular(path) as file:
            return _read(path, file)
    except EOFError as error:
        raise DataError(f"{path}: truncated gzip file; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read(path: pathlib.Path, file: BinaryIO) -> np.ndarray:
    packed = os.fstat(file.fileno()).st_size
    # By content, not by name: browsers unpack .gz files and leave their names alone.
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    unpacked = gzip.GzipFile(fileobj=file) if is_packed else file
    shape = _read_header(path, unpacked.read(_HEADER_BYTES))
    expected = math.prod(shape)
    if expected == 0:
        raise DataError(f"{path}: is empty, its header says {'x'.join(map(str, shape))}")
    check_unpacked_size(expected, packed, path)
    body = unpacked.read(expected)
    if len(body) < expected:
        raise DataError(f"{path}: truncated, {len(body)} of {expected} bytes of pixels")
    # Of what follows no more than a byte is unpacked; reading to the end checks gzip's checksum.
    if unpacked.read(1):
        raise DataError(f"{path}: has bytes after the last image; not as it says")
    return np.frombuffer(body, np.uint8).reshape(*shape, 1)


def _read_header(path: pathlib.Path, content: bytes) -> tuple[int, ...]:
    if len(content) < 4:
        raise DataError(f"{path}: truncated, {len(content)} bytes are no IDX header")
    zeros, dtype, ndim = struct.unpack(">HBB", content[:4])
    if zeros or dtype not in _TYPES:
        raise DataError(f"{path}: not an IDX file (starts with {content[:4].hex(' ')})")
    if dtype != _UINT8:
        raise DataError(f"{path}: holds {_TYPES[dtype]}, where images must be uint8")
    if ndim != 3:
        raise DataError(f"{path}: has {ndim} dimension(s), where images have 3 (count, H, W)")
    if len(content) < _HEADER_BYTES:
        raise DataError(f"{path}: truncated, {len(content)} bytes are no IDX header of images")
    return struct.unpack(">3I", content[4:])
