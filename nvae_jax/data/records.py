"""Reads prepared data sets: array_record files of PNG images at their final size, and a manifest.

A data set is a folder, which `record_writer.py` creates atomically:

  manifest.json                        its content, with the size of every file
  train-00000.array_record, ...        one PNG per record
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import pathlib
from collections.abc import Mapping

import grain
import numpy as np

from nvae_jax import files
from nvae_jax.data import images as images_lib
from nvae_jax.data.limits import MAX_PIXELS
from nvae_jax.data.spec import CorruptError, DataError

MANIFEST = "manifest.json"
VERSION = 1
_AGAIN = "prepare the data set again"


class Records:
    """The format of prepared data sets."""

    looks_like = MANIFEST

    def find(self, directory: pathlib.Path) -> Mapping[str, pathlib.Path]:
        """Finds the splits of a prepared data set; {} if `directory` is something else."""
        if not (directory / MANIFEST).is_file():
            return {}
        return dict.fromkeys(read_manifest(directory)["splits"], directory)

    def open(
        self, found: pathlib.Path, split: str, channels: int, max_value: int = 0
    ) -> RecordImages:
        """Opens a split, with the number of channels that it was prepared with."""
        del channels, max_value
        return RecordImages(found, split)


class RecordImages:
    """The images of one split of a prepared data set."""

    def __init__(self, directory: pathlib.Path, split: str):
        manifest = read_manifest(directory)
        written = manifest["splits"][split]
        _check_files(directory, written)
        self._paths = [str(directory / file["name"]) for file in written]
        self._ends = list(itertools.accumulate(file["count"] for file in written))
        self.shape = (self._ends[-1], *2 * (manifest["image_size"],), manifest["channels"])
        self._records = grain.sources.ArrayRecordDataSource(self._paths)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            content = self._records[index]
        except Exception as error:  # array_record has no exception class of its own.
            raise CorruptError(f"{self._where(index)}: unreadable ({_brief(error)})") from error
        image = images_lib.decode(content, self._where(index))
        if image.shape != self.shape[1:]:
            raise CorruptError(
                f"{self._where(index)}: has shape {image.shape} instead of {self.shape[1:]}"
            )
        return image

    def _where(self, index: int) -> str:
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        return f"{self._paths[shard]} record {index - start}"


def read_manifest(directory: pathlib.Path) -> dict:
    """Reads the manifest of a prepared data set. Raises DataError if it is not valid."""
    path = directory / MANIFEST
    try:
        with files.open_regular(path) as file:
            manifest = json.loads(file.read())
        if not isinstance(manifest, dict):
            raise ValueError("it is not an object")
        version = manifest["version"]
        if version == VERSION:
            _check_manifest(manifest)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except KeyError as error:
        raise DataError(f"{path}: damaged manifest, without {error}; {_AGAIN}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged manifest ({_brief(error)}); {_AGAIN}") from error
    if version != VERSION:
        raise DataError(f"{path}: not a manifest of version {VERSION}; {_AGAIN}")
    return manifest


def _check_manifest(manifest: dict):
    """Raises KeyError for a missing value, or ValueError for an invalid one."""
    _require(isinstance(manifest["name"], str), "name")
    _require(_is_count(manifest["image_size"], math.isqrt(MAX_PIXELS)), "image_size")
    _require(_is_count(manifest["channels"]) and manifest["channels"] in (1, 3), "channels")
    _require(_is_count(manifest["skipped"], minimum=0), "skipped")
    _require(len(manifest["splits"]) > 0, "splits")
    for split, written in manifest["splits"].items():
        _require(isinstance(written, list) and written, f"files of {split}")
        for file in written:
            # Only plain names, so that a manifest cannot make us read files in other folders.
            _require(pathlib.PurePath(file["name"]).name == file["name"] != "", "name of a file")
            _require(_is_count(file["count"]), f"count of {file['name']}")
            _require(_is_count(file["bytes"]), f"bytes of {file['name']}")


def _is_count(value, maximum: int = 2**62, minimum: int = 1) -> bool:
    return type(value) is int and minimum <= value <= maximum


def _require(condition: object, what: str):
    if not condition:
        raise ValueError(f"its {what} is not valid")


def _check_files(directory: pathlib.Path, written: list[dict]):
    for file in written:
        path = directory / file["name"]
        if not path.is_file():
            raise DataError(f"{path} is missing; {_AGAIN}")
        if (size := path.stat().st_size) != file["bytes"]:
            kind = "truncated" if size < file["bytes"] else "changed"
            raise DataError(f"{path}: {kind}, {size} bytes but {file['bytes']} were written")
        if (count := _count(path)) != file["count"]:
            raise DataError(f"{path}: {count} images but the manifest says {file['count']}")


def _count(path: pathlib.Path) -> int:
    try:
        return len(grain.sources.ArrayRecordDataSource(str(path)))
    except Exception as error:  # array_record has no exception class of its own.
        raise DataError(f"{path}: damaged record file ({_brief(error)})") from error


def _brief(error: Exception) -> str:
    return str(error).split("\n")[0][:200] or type(error).__name__
