"""Reads TFRecord files in the layout of Glow's data: raw pixels with their shape."""

from __future__ import annotations

import math
import pathlib
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from nvae_jax import extras, files
from nvae_jax.data.images import probe
from nvae_jax.data.limits import MAX_PIXELS
from nvae_jax.data.spec import CorruptError, DataError

_HEADER = 12  # length of the record (8 bytes) and its checksum (4)
_FOOTER = 4  # checksum of the record's content
_LONGEST = 3 * MAX_PIXELS + 1024  # bytes of a record


class TfRecords:
    """The format of a folder with train/*.tfrecords and validation/*.tfrecords.

    Each record is a tf.train.Example with "shape" (H, W, C) and "data", the bytes of the pixels.

    Args:
      level: selects the files with images of size 2**level; level 8 is "-r08-" in their names.
    """

    looks_like = "Glow's train/*.tfrecords and validation/*.tfrecords"

    def __init__(self, level: int):
        self._level = level

    def find(self, directory: pathlib.Path) -> Mapping[str, Sequence[pathlib.Path]]:
        """Finds the files of each split."""
        found = {
            split: sorted((directory / split).glob(f"*-r{self._level:02d}-s-*.tfrecords"))
            for split in ("train", "validation")
        }
        return {split: paths for split, paths in found.items() if paths}

    def open(
        self, found: Sequence[pathlib.Path], split: str, channels: int, max_value: int = 0
    ) -> TfRecordImages:
        """Opens a split, reading the length of every record in it."""
        del split, channels, max_value
        return TfRecordImages(found)


class TfRecordImages:
    """Random access to the images of some files, after finding the position of every record."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self._paths = paths
        tables = [_scan(path) for path in paths]
        self._files = np.repeat(np.arange(len(paths)), [len(table) for table in tables])
        self._spans = np.concatenate(tables)
        if not len(self._spans):
            raise DataError(f"{paths[0].parent}: its files have no records")
        self.shape = (len(self._spans), *probe(self))

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> np.ndarray:
        path, (offset, length) = self._paths[self._files[index]], self._spans[index]
        try:
            with files.open_regular(path) as file:
                file.seek(offset)
                record = file.read(length)
        except OSError as error:
            raise CorruptError(f"{path}: cannot be read ({error.strerror})") from error
        first = np.searchsorted(self._files, self._files[index])
        return _parse(record, f"{path} record {index - first}")


def _scan(path: pathlib.Path) -> np.ndarray:
    """Finds the records of a file: int64 (N, 2), offset and length of each."""
    spans, position = [], 0
    try:
        with files.open_regular(path) as file:
            size = path.stat().st_size
            while position < size:
                header = file.read(_HEADER)
                length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else size
                end = position + _HEADER + length + _FOOTER
                if end > size:
                    raise DataError(f"{path}: truncated in record {len(spans)}")
                if length > _LONGEST:
                    raise DataError(
                        f"{path}: record {len(spans)} of {length} bytes is not an image"
                    )
                spans.append((position + _HEADER, length))
                position = file.seek(end)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return np.array(spans, np.int64).reshape(-1, 2)


def _parse(record: bytes, where: str) -> np.ndarray:
    proto = extras.load("nvae_jax.data.example_proto", "tfrecords", "a file of tfrecords")
    try:
        items = proto.Example.FromString(record).features.feature
        features = {item.key: item.value for item in items}
        shape = tuple(features["shape"].int64_list.value)
        data = features["data"].bytes_list.value[0]
    except (proto.DecodeError, KeyError, IndexError) as error:
        raise CorruptError(f"{where}: damaged, or not an image of Glow's layout") from error
    if (
        len(shape) != 3
        or shape[-1] not in (1, 3)
        or min(shape) < 1
        or math.prod(shape) != len(data)
    ):
        raise CorruptError(f"{where}: {len(data)} bytes are not an image of shape {shape}")
    return np.frombuffer(data, np.uint8).reshape(shape)
