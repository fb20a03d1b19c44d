"""Reads CelebA in the form in which its authors distribute it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from nvae_jax import files
from nvae_jax.data.folder import FolderImages
from nvae_jax.data.spec import DataError

_PICTURES, _PARTITION = "img_align_celeba", "list_eval_partition.txt"
_SPLITS = {"0": "train", "1": "validation", "2": "test"}
_SIZE = 178  # The shorter side of all images.


class CelebA:
    """The format of a folder with img_align_celeba/ and its splits, list_eval_partition.txt."""

    looks_like = f"{_PICTURES}/*.jpg and {_PARTITION}"

    def find(self, directory: pathlib.Path) -> Mapping[str, list[pathlib.Path]]:
        """Finds the image files of each split."""
        if not (directory / _PICTURES).is_dir():
            return {}
        path = directory / _PARTITION
        try:
            with files.open_regular(path) as file:
                lines = file.read().decode().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise DataError(
                f"{path}: cannot be read ({reason}); it assigns the images to splits"
            ) from error
        found = {}
        for number, line in enumerate(lines, 1):
            name, split = _parse(line, f"{path} line {number}")
            found.setdefault(split, []).append(directory / _PICTURES / name)
        return found

    def open(
        self, found: list[pathlib.Path], split: str, channels: int, max_value: int = 0
    ) -> FolderImages:
        """Opens a split."""
        del split
        return FolderImages(found, _SIZE, channels, max_value)


def _parse(line: str, where: str) -> tuple[str, str]:
    match line.split():
        case [name, number] if number in _SPLITS and pathlib.PurePath(name).name == name:
            return name, _SPLITS[number]
    raise DataError(f"{where}: {line[:80]!r} is not an image and the number of its split")
