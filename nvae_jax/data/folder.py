"""A folder of pictures: grey or colour, of any size, also in sub-folders."""

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

# Sub-folders of these names are splits; they go by different names in different collections.
_SPLIT_FOLDERS = {
    "train": ("train", "train_32x32"),
    "validation": ("validation", "valid", "val", "valid_32x32"),
    "test": ("test",),
}
_LARGEST = 256  # The largest size with published settings.
_SAMPLE = 500
_MOST_NAMED = 5  # kinds of other files

Splits = Mapping[str, Sequence[pathlib.Path]]


class Folder:
    """The format of a folder of pictures.

    Where it has sub-folders for training and for validation or test, these are the splits.
    Otherwise a tenth is held out: the pictures whose name (from the folder on) has a SHA-256 that
    begins with a number below a tenth of the largest. So a picture stays in its split whatever
    is added. With `exact`, a fixed permutation holds out exactly one in ten.
    """

    looks_like = f"pictures ({', '.join(images_lib.SUFFIXES)}), in sub-folders too"

    def __init__(self, exact: bool = False):
        self._exact = exact

    def find(self, directory: pathlib.Path) -> Mapping[str, Splits]:
        """All splits of the folder, under the name of each; none when there are no pictures."""
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
        """Opens a split; `channels` 0 means colour unless all (of a sample) are grey."""
        # Of all splits, so that none differs from the others.
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
    """Pictures of any size, read from their files. `shape` gives the size that suits them."""

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
    """All pictures below a folder in an order of their own, not the file system's. Says once what
    else is there, but for hidden files."""
    found, passed_over = [], collections.Counter()
    for root, folders, names in os.walk(directory, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # Which os.walk does not enter: they may lead back to where it came from.
        passed_over["linked folder"] += sum(os.path.islink(os.path.join(root, f)) for f in folders)
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(images_lib.SUFFIXES):
                found.append(pathlib.Path(root, name))
            else:
                passed_over[pathlib.Path(name).suffix.lower() or "without an ending"] += 1
    if found:
        _report_passed_over(directory, frozenset(passed_over.items()))
    return sorted(found, key=lambda path: path.relative_to(directory).as_posix())


@functools.cache  # Said once, however often a folder is opened.
def _report_passed_over(directory: pathlib.Path, counts: frozenset[tuple[str, int]]):
    most = collections.Counter({kind: count for kind, count in counts if count}).most_common()
    named = [f"{count} {kind}" for kind, count in most[:_MOST_NAMED]]
    if rest := sum(count for _, count in most[_MOST_NAMED:]):
        named.append(f"{rest} other")
    if named:
        logging.warning(
            "%s: passed over %s; pictures are %s",
            *(directory, ", ".join(named), ", ".join(images_lib.SUFFIXES)),
        )


def _raise_unreadable(error: OSError):
    raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from error


def _is_held_out(name: pathlib.PurePath) -> bool:
    digest = hashlib.sha256(name.as_posix().encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") * 10 < 2**64


def _survey(paths: Sequence[pathlib.Path]) -> tuple[int, int]:
    """(size, channels) that suit a collection, from an even sample of it.

    The size is the largest power of two that is no larger than the shorter side of half of the
    pictures, and at most 256.
    """
    sides, channels, fault = [], 1, None
    for index in np.unique(np.linspace(0, len(paths) - 1, _SAMPLE).astype(int)):
        try:
            height, width, found = images_lib.read_header(paths[index])
        except CorruptError as error:
            fault = fault or error  # Reported, or skipped, when its turn comes.
            continue
        sides.append(min(height, width))
        channels = max(channels, found)
    if not sides:
        raise DataError(f"none of the pictures can be read, the first: {fault}")
    side = int(np.clip(np.median(sides), 1, _LARGEST))
    return 2 ** (side.bit_length() - 1), channels
