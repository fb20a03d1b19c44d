"""Reads MNIST's file format, IDX: a magic number, big-endian sizes, then raw bytes; often gzipped.

The first two bytes are zero, the third is the type (8 is uint8), the fourth the number of
dimensions, followed by one 32-bit size per dimension.
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
    """The format of a folder with MNIST's files, under any of their usual names."""

    looks_like = "IDX files (train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz)"

    def find(self, directory: pathlib.Path) -> Mapping[str, pathlib.Path]:
        """Finds the image file of each split."""
        found = {split: _find(directory, stem) for split, stem in _STEMS.items()}
        return {split: path for split, path in found.items() if path}

    def open(
        self, found: pathlib.Path, split: str, channels: int, max_value: int = 0
    ) -> np.ndarray:
        """Reads all images of a split, uint8 (N, H, W, 1)."""
        del split, channels, max_value
        return read_images(found)


def _find(directory: pathlib.Path, stem: str) -> pathlib.Path | None:
    names = [f"{stem}-images{dash}idx3-ubyte{end}" for dash in "-." for end in ("", ".gz")]
    return next((directory / name for name in names if (directory / name).is_file()), None)


def read_images(path: str | pathlib.Path) -> np.ndarray:
    """Reads all images of an IDX file, uint8 (N, H, W, 1).

    Raises:
      DataError: if it is not an IDX file, has another type, not three dimensions or no images, is
        truncated or damaged, or is longer than its header says. The message names the file.
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
    # Decided by content rather than name: browsers unpack .gz files without renaming them.
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
    # Only one further byte is unpacked; reading at the end also checks gzip's checksum.
    if unpacked.read(1):
        raise DataError(f"{path}: is longer than its header says, with bytes after the last image")
    return np.frombuffer(body, np.uint8).reshape(*shape, 1)


def _read_header(path: pathlib.Path, content: bytes) -> tuple[int, ...]:
    if len(content) < 4:
        raise DataError(f"{path}: truncated, {len(content)} bytes are not an IDX header")
    zeros, dtype, ndim = struct.unpack(">HBB", content[:4])
    if zeros or dtype not in _TYPES:
        raise DataError(f"{path}: not an IDX file (starts with {content[:4].hex(' ')})")
    if dtype != _UINT8:
        raise DataError(f"{path}: holds {_TYPES[dtype]}, but images must be uint8")
    if ndim != 3:
        raise DataError(f"{path}: has {ndim} dimension(s), but images have 3 (count, H, W)")
    if len(content) < _HEADER_BYTES:
        raise DataError(f"{path}: truncated, {len(content)} bytes are not an IDX header of images")
    return struct.unpack(">3I", content[4:])
