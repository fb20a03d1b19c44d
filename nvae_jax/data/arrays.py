"""Reads a user's own arrays: NumPy's .npy files, which are memory-mapped, and .npz files."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from nvae_jax.data import depth, numpy_files, views
from nvae_jax.data.images import Images
from nvae_jax.data.spec import DataError

# {split: names of its file in a folder, or of its array in an .npz}
_NAMES = {
    "train": ("train", "x_train"),
    "validation": ("validation", "valid", "val", "x_validation", "x_val"),
    "test": ("test", "x_test"),
}
_KEYS = ("images", "image", "data", "x", "arr_0")
_ENDINGS = (".npy", ".npz")


@dataclasses.dataclass(frozen=True)
class SplitArray:
    """Where the images of a split are.

    Attributes:
      path: the file.
      key: name of the array in an .npz file; "" for an .npy file.
      is_partial: whether the split is a part of the array, from which validation is held out.
    """

    path: pathlib.Path
    key: str = ""
    is_partial: bool = False


class Arrays:
    """The format of a folder with train.npy and validation.npy or test.npy, or with .npz files of
    these names; or of a single file.

    An .npz file can have one array per split. If there is only a training array, a fixed random
    tenth of it is held out for validation (`views.validation_tenth`).
    """

    looks_like = (
        "train.npy and validation.npy or test.npy, or one .npy or .npz file: uint8 or uint16 of "
        "(N, H, W, C) or (N, H, W)"
    )

    def find(self, directory: pathlib.Path) -> Mapping[str, SplitArray]:
        """Finds the array of each split; `directory` can also be a file."""
        if directory.is_file():
            return _in_file(directory) if directory.suffix in _ENDINGS else {}
        if not directory.is_dir():
            return {}
        paths = sorted(path for path in directory.iterdir() if path.suffix in _ENDINGS)
        found = {
            split: SplitArray(path, _key(path, split)) for split, path in _by_split(paths).items()
        }
        if found:
            return _with_validation(found)
        if len(paths) > 1:
            raise DataError(
                f"{directory}: has {len(paths)} files of arrays and none named train: name one of "
                "them with --config.data.dir, or rename them to train, validation and test"
            )
        return _in_file(paths[0]) if paths else {}

    def open(
        self, found: SplitArray, split: str, channels: int, max_value: int = 0, num_bits: int = 8
    ) -> Images:
        """Opens a split, with the number of channels that the array has."""
        del channels
        images = ArrayImages(found.path, found.key, max_value, num_bits)
        if not found.is_partial:
            return images
        held_out = split == "validation"
        return views.Subset(images, views.validation_tenth(len(images), held_out))


class ArrayImages:
    """The images of an array. An .npy file is memory-mapped and read image by image; an array in an
    .npz file is loaded as a whole."""

    def __init__(self, path: pathlib.Path, key: str, max_value: int = 0, num_bits: int = 8):
        self._path, self._key, self._num_bits = path, key, num_bits
        self._array, recorded = _load(path, key)
        self._white = {"max_value": max_value, "recorded": recorded}
        self._where = f"{path}: {key}" if key else f"{path}"
        self.shape = _shape(self._where, self._array)
        if self._array.dtype.itemsize == 1 and num_bits > 8:
            raise DataError(
                f"{self._where} is uint8, but data.num_bits={num_bits} asks for more bits"
            )
        self[0]  # Raises an error early if the range of values does not fit.

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        image = np.array(self._array[index]).reshape(self.shape[1:])
        if image.dtype == np.uint8:
            return image
        where = f"{self._where} of image {index}"
        white = depth.find_white(image, where, bits=16, num_bits=self._num_bits, **self._white)
        return depth.scale(image, white, self._num_bits)

    def __getstate__(self) -> dict[str, Any]:
        """The state for worker processes, without the content of a memory-mapped file."""
        mapped = isinstance(self._array, np.memmap)
        return {**self.__dict__, "_array": None} if mapped else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._array is None:
            self._array, _ = _load(self._path, self._key)


def _by_split(names):
    """{split: the one of `names` (strings or paths) that names it}."""
    stems = {getattr(name, "stem", name): name for name in reversed(names)}
    found = {split: [s for s in known if s in stems] for split, known in _NAMES.items()}
    return {split: stems[known[0]] for split, known in found.items() if known}


def _in_file(path):
    if path.suffix == ".npy":
        return _with_validation({"train": SplitArray(path)})
    found = _by_split(numpy_files.names(path)) or {"train": _key(path, "train")}
    return _with_validation({split: SplitArray(path, key) for split, key in found.items()})


def _key(path, split):
    """The name of a split's array in an .npz file; "" for an .npy file."""
    if path.suffix == ".npy":
        return ""
    names = numpy_files.names(path)
    known = [key for key in (*_NAMES[split], *_KEYS) if key in names]
    others = [name for name in names if name != depth.WHITE_KEY]
    if not known and len(others) != 1:
        raise DataError(f"{path}: has none of the arrays {', '.join((*_NAMES[split], *_KEYS))}")
    return (known or others)[0]


def _with_validation(found):
    if set(found) != {"train"}:
        return found
    part = dataclasses.replace(found["train"], is_partial=True)
    return {"train": part, "validation": part}


def _load(path, key):
    """Returns the array, and the value of white recorded in the file, or 0."""
    if not key:
        return numpy_files.mapped(path), 0
    loaded = numpy_files.load(
        path, lambda names: [name for name in names if name in (key, depth.WHITE_KEY)]
    )
    return loaded[key], depth.white_of_arrays(loaded)


def _shape(where, array):
    """The shape (N, H, W, C) of an array of images; raises DataError if it is not one."""
    if array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise DataError(f"{where} is {array.dtype}, but images must be uint8 or uint16")
    shape = array.shape if array.ndim == 4 else (*array.shape, 1)
    if len(shape) != 4 or 0 in shape or shape[-1] not in (1, 3):
        swapped = array.ndim == 4 and array.shape[1] in (1, 3)
        hint = ": channels come last" if swapped else ""
        raise DataError(
            f"{where} has shape {array.shape}, but images must be (N, H, W, C) with C 1 or 3, or "
            f"(N, H, W){hint}"
        )
    return shape
