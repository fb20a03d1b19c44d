"""Reads images in NumPy's .npz files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from nvae_jax.data import numpy_files
from nvae_jax.data.spec import DataError

# {split: stems of its files}; downsampled ImageNet has ten training files.
_STEMS = {
    "train": ["train", *(f"train_data_batch_{i}" for i in range(1, 11))],
    "validation": ["validation", "valid", "val", "val_data"],
    "test": ["test"],
}
_KEYS = ("images", "image", "data", "x", "arr_0")
_KEYS_BY_SPLIT = {"train": "x_train", "validation": "x_val", "test": "x_test"}


class Npz:
    """The format of a folder with train.npz and validation.npz or test.npz, or with a single .npz
    file that contains x_train and x_test."""

    looks_like = "train.npz and validation.npz or test.npz (uint8 N, H, W, C under 'images')"

    def find(self, directory: pathlib.Path) -> Mapping[str, list[pathlib.Path]]:
        """Finds the files of each split."""
        found = {}
        for split, stems in _STEMS.items():
            paths = [directory / f"{stem}.npz" for stem in stems]
            found[split] = [path for path in paths if path.is_file()]
        found = {split: paths for split, paths in found.items() if paths}
        return found or _find_joint(directory)

    def open(
        self, found: list[pathlib.Path], split: str, channels: int, max_value: int = 0
    ) -> np.ndarray:
        """Reads all images of a split, uint8 (N, H, W, C)."""
        del channels, max_value
        return np.concatenate([_read(path, split) for path in found])


def _find_joint(directory: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    paths = list(directory.glob("*.npz"))
    if len(paths) != 1:
        return {}
    names = numpy_files.names(paths[0])
    return {split: paths for split, key in _KEYS_BY_SPLIT.items() if key in names}


def _read(path: pathlib.Path, split: str) -> np.ndarray:
    keys = (_KEYS_BY_SPLIT[split], *_KEYS)
    loaded = numpy_files.load(path, lambda names: [key for key in keys if key in names][:1])
    if not loaded:
        raise DataError(f"{path}: has none of the arrays {', '.join(keys)}")
    return _as_images(path, *loaded.popitem())


def _as_images(path: pathlib.Path, key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise DataError(f"{path}: {key} is {array.dtype}, but images must be uint8")
    if array.ndim == 2 and array.shape[1] and (side := round((array.shape[1] / 3) ** 0.5)):
        if 3 * side * side == array.shape[1]:  # downsampled ImageNet: one colour plane per third
            array = array.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise DataError(f"{path}: {key} has shape {array.shape}, but images must be (N, H, W, C)")
    return array
