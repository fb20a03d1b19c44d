"""Reads a folder of image files: grey or colour, of any size, also in sub-folders."""

from __future__ import annotations

import collections
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from nvae_jax.data import images as images_lib
from nvae_jax.data import views
from nvae_jax.data.spec import CorruptError, DataError

# {split: names of its sub-folder in various data sets}
_SPLIT_FOLDERS = {
    "train": ("train", "train_32x32"),
    "validation": ("validation", "valid", "val", "valid_32x32"),
    "test": ("test",),
}
_LARGEST = 256  # the largest size with published settings
_SAMPLE = 500  # images from which size and channels are determined
_MAX_NAMED = 5  # types of other files that a warning lists

Splits = Mapping[str, Sequence[pathlib.Path]]


class Folder:
    """The format of a folder of image files.

    If it has sub-folders for training and for validation or test, these are the splits. Otherwise
    about a tenth is held out for validation, chosen by a hash of the file's relative path, so that
    an image stays in its split when others are added. With `exact`, a fixed permutation holds out
    exactly one in ten.
    """

    looks_like = f"pictures ({', '.join(images_lib.SUFFIXES)}), in sub-folders too"

    def __init__(self, exact: bool = False):
        self._exact = exact

    def find(self, directory: pathlib.Path) -> Mapping[str, Splits]:
        """Finds the splits: {split: all splits}; {} if there are no image files."""
        if not directory.is_dir():
            return {}
        named = _named_splits(directory)
        if "train" in named and len(named) > 1:
            splits = {split: pictures(folder) for split, folder in named.items()}
        else:
            splits = self._split(directory, pictures(directory))
        return dict.fromkeys(splits, splits) if any(splits.values()) else {}

    def open(
        self, found: Splits, split: str, channels: int, max_value: int = 0, num_bits: int = 8
    ) -> FolderImages:
        """Opens a split; with `channels` 0 it is grey if all sampled images are, else colour."""
        # All splits are sampled, so that they get the same size and number of channels.
        size, found_channels = _survey([path for paths in found.values() for path in paths])
        return FolderImages(found[split], size, channels or found_channels, max_value, num_bits)

    def _split(self, directory: pathlib.Path, paths: Sequence[pathlib.Path]) -> Splits:
        if self._exact:
            held_out = np.zeros(len(paths), bool)
            held_out[views.validation_tenth(len(paths), held_out=True)] = True
        else:
            held_out = [_is_held_out(path.relative_to(directory)) for path in paths]
        return {
            "train": [path for path, out in zip(paths, held_out, strict=True) if not out],
            "validation": [path for path, out in zip(paths, held_out, strict=True) if out],
        }


class FolderImages:
    """Image files of any size, read on demand.

    Args:
      paths: the files.
      size: height and width in `shape`, which images are usually resized to.
      channels: as in `images.decode`, and so are `max_value` and `num_bits`.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        size: int,
        channels: int,
        max_value: int = 0,
        num_bits: int = 8,
    ):
        self._paths, self._values = paths, (max_value, num_bits)
        self.shape = (len(paths), size, size, channels)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return images_lib.read_file(self._paths[index], self.shape[-1], *self._values)


def _named_splits(directory: pathlib.Path) -> dict[str, pathlib.Path]:
    return {
        split: directory / name
        for split, names in _SPLIT_FOLDERS.items()
        for name in names
        if (directory / name).is_dir()
    }


def pictures(directory: pathlib.Path) -> list[pathlib.Path]:
    """All image files below a folder, sorted by their relative paths.

    Warns once of other files and of linked folders, except hidden ones.
    """
    found, ignored = [], collections.Counter()
    for root, folders, names in os.walk(directory, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # os.walk does not enter linked folders, because they could form a cycle.
        ignored["linked folder"] += sum(os.path.islink(os.path.join(root, f)) for f in folders)
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(images_lib.SUFFIXES):
                found.append(pathlib.Path(root, name))
            else:
                ignored[pathlib.Path(name).suffix.lower() or "without an ending"] += 1
    if found:
        _warn_of_ignored(directory, frozenset(ignored.items()))
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())


@functools.cache  # once per folder, however often it is opened
def _warn_of_ignored(directory: pathlib.Path, counts: frozenset[tuple[str, int]]):
    most = collections.Counter({kind: count for kind, count in counts if count}).most_common()
    named = [f"{count} {kind}" for kind, count in most[:_MAX_NAMED]]
    if rest := sum(count for _, count in most[_MAX_NAMED:]):
        named.append(f"{rest} other")
    if named:
        logging.warning(
            "%s: ignored %s; image files are %s",
            *(directory, ", ".join(named), ", ".join(images_lib.SUFFIXES)),
        )


def _raise_unreadable(error: OSError):
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error


def _is_held_out(name: pathlib.PurePath) -> bool:
    digest = hashlib.sha256(name.as_posix().encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") * 10 < 2**64


def _survey(paths: Sequence[pathlib.Path]) -> tuple[int, int]:
    """Chooses (size, channels) for image files from an evenly spaced sample of them.

    The size is the largest power of two that does not exceed the median of their shorter sides, and
    at most 256.
    """
    sides, channels, fault = [], 1, None
    for index in np.unique(np.linspace(0, len(paths) - 1, _SAMPLE).astype(int)):
        try:
            height, width, found = images_lib.read_header(paths[index])
        except CorruptError as error:
            fault = fault or error  # reported, or skipped, when the image is read
            continue
        sides.append(min(height, width))
        channels = max(channels, found)
    if not sides:
        raise DataError(f"none of the image files can be read, the first: {fault}")
    side = int(np.clip(np.median(sides), 1, _LARGEST))
    return 2 ** (side.bit_length() - 1), channels
