"""Prepared data sets: array_record files of PNG images at their final size, and a manifest.

A data set is a folder. `record_writer.py` lets it appear under its name only when it is complete.

  manifest.json                        what is in it, with the size of every file
  train-00000.array_record, ...        one PNG a record
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
        """The splits of a prepared data set; none when `directory` is something else."""
        if not (directory / MANIFEST).is_file():
            return {}
        return dict.fromkeys(read_manifest(directory)["splits"], directory)

    def open(
        self, found: pathlib.Path, split: str, channels: int, max_value: int = 0
    ) -> RecordImages:
        """Opens a split. Its channels are those it was prepared with."""
        del channels, max_value
        return RecordImages(found, split)


class RecordImages:
    """The images of one split of a prepared data set."""

    def __init__(self, directory: pathlib.Path, split: str):
        manifest = read_manifest(directory)
        written = manifest["splits"][split]
        _check_files(directory, written)  # One by one, so that an error can name the file.
        self._paths = [str(directory / file["name"]) for file in written]
        self._ends = list(itertools.accumulate(file["count"] for file in written))
        self.shape = (self._ends[-1], *2 * (manifest["image_size"],), manifest["channels"])
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
        with files.open_regular(path) as file:
            manifest = json.loads(file.read())
        if not isinstance(manifest, dict):
            raise ValueError("it is no object")
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
    """Raises KeyError, or another error that says which value cannot be."""
    _require(isinstance(manifest["name"], str), "name")
    _require(_is_count(manifest["image_size"], math.isqrt(MAX_PIXELS)), "image_size")
    _require(_is_count(manifest["channels"]) and manifest["channels"] in (1, 3), "channels")
    _require(_is_count(manifest["skipped"], least=0), "skipped")
    _require(len(manifest["splits"]) > 0, "splits")
    for split, written in manifest["splits"].items():
        _require(isinstance(written, list) and written, f"files of {split}")
        for file in written:
            # A plain name: a manifest is no reason to read what is elsewhere.
            _require(pathlib.PurePath(file["name"]).name == file["name"] != "", "name of a file")
            _require(_is_count(file["count"]), f"count of {file['name']}")
            _require(_is_count(file["bytes"]), f"bytes of {file['name']}")


def _is_count(value, most: int = 2**62, least: int = 1) -> bool:
    return type(value) is int and least <= value <= most


def _require(condition: object, what: str):
    if not condition:
        raise ValueError(f"its {what} cannot be")


def _check_files(directory: pathlib.Path, written: list[dict]):
    for file in written:
        path = directory / file["name"]
        if not path.is_file():
            raise DataError(f"{path} is missing; {_AGAIN}")
        if (size := path.stat().st_size) != file["bytes"]:
            kind = "truncated" if size < file["bytes"] else "changed"
            raise DataError(f"{path}: {kind}, {size} bytes where {file['bytes']} were written")
        if (count := _count(path)) != file["count"]:
            raise DataError(f"{path}: {count} images where the manifest says {file['count']}")


def _count(path: pathlib.Path) -> int:
    try:
        return len(grain.sources.ArrayRecordDataSource(str(path)))
    except Exception as error:  # As when reading.
        raise DataError(f"{path}: damaged record file ({_brief(error)})") from error


def _brief(error: Exception) -> str:
    return str(error).split("\n")[0][:200] or type(error).__name__
