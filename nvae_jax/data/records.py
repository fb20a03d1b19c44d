"""Prepared data sets: array_record files of PNG images at their final size, and a manifest.

A data set is a folder. `record_writer.py` lets it appear under its name only when it is complete.

  manifest.json                        what is in it, with the size of every file
  train-00000.array_record, ...        one PNG a record
"""

from __future__ import annotations

import bisect
import itertools
import json
import pathlib
from collections.abc import Mapping

import grain
import numpy as np

from nvae_jax.data import images as images_lib
from nvae_jax.data.spec import CorruptError, DataError

MANIFEST = "manifest.json"
VERSION = 1


class Records:
    """The format of prepared data sets."""

    looks_like = MANIFEST

    def find(self, directory: pathlib.Path) -> Mapping[str, pathlib.Path]:
        """The splits of a prepared data set; none when `directory` is something else."""
        if not (directory / MANIFEST).is_file():
            return {}
        return dict.fromkeys(read_manifest(directory)["splits"], directory)

    def open(self, found: pathlib.Path, split: str, channels: int) -> RecordImages:
        """Opens a split. Its channels are those it was prepared with."""
        del channels
        return RecordImages(found, split)


class RecordImages:
    """The images of one split of a prepared data set."""

    def __init__(self, directory: pathlib.Path, split: str):
        manifest = read_manifest(directory)
        files = manifest["splits"][split]
        _check_files(directory, files)
        self._paths = [str(directory / file["name"]) for file in files]
        self._ends = list(itertools.accumulate(file["count"] for file in files))
        count = self._ends[-1] if files else 0
        self.shape = (count, *2 * (manifest["image_size"],), manifest["channels"])
        for path in self._paths:  # One by one, so that an error can name the file.
            _check_readable(path)
        self._records = grain.sources.ArrayRecordDataSource(self._paths)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            content = self._records[index]
        except Exception as error:  # array_record has no errors of its own.
            raise CorruptError(f"{self._where(index)}: unreadable ({_brief(error)})") from error
        image = images_lib.decode(content, self._where(index))
        if image.shape != self.shape[1:]:
            raise CorruptError(f"{self._where(index)}: {image.shape} is not {self.shape[1:]}")
        return image

    def _where(self, index: int) -> str:
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        return f"{self._paths[shard]} record {index - start}"


def read_manifest(directory: pathlib.Path) -> dict:
    """The manifest of a prepared data set. Raises DataError when it is not a sound one."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["version"]
        splits = manifest["splits"].values()
        sound = all(file["name"] and file["count"] > 0 for files in splits for file in files)
        sound = sound and manifest["image_size"] > 0 and manifest["channels"] in (1, 3)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged manifest; prepare the data set again") from error
    if version != VERSION or not sound:
        raise DataError(f"{path}: not a manifest of version {VERSION}; prepare the set again")
    return manifest


def _check_files(directory: pathlib.Path, files: list[dict]):
    for file in files:
        path = directory / file["name"]
        if not path.is_file():
            raise DataError(f"{path} is missing; prepare the data set again")
        if (size := path.stat().st_size) != file["bytes"]:
            kind = "truncated" if size < file["bytes"] else "changed"
            raise DataError(f"{path}: {kind}, {size} bytes where {file['bytes']} were written")


def _check_readable(path: str):
    try:
        len(grain.sources.ArrayRecordDataSource(path))
    except Exception as error:  # As when reading.
        raise DataError(f"{path}: damaged record file ({_brief(error)})") from error


def _brief(error: Exception) -> str:
    return str(error).split("\n")[0][:200] or type(error).__name__
