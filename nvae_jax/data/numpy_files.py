"""Reads NumPy's files, .npz and .npy, after checking in their headers how much they unpack to."""

from __future__ import annotations

import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable

import numpy as np

from nvae_jax import files
from nvae_jax.data.limits import check_unpacked_size
from nvae_jax.data.spec import DataError

_END = ".npy"
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

Choice = Callable[[list[str]], Iterable[str]]


def load(path: str | pathlib.Path, choose: Choice = list) -> dict[str, np.ndarray]:
    """Loads arrays of an `.npz` file by name; the array of an `.npy` file is named `images`.

    Args:
      path: the file.
      choose: function that selects the names to load from the list of names in an `.npz` file.

    Raises:
      DataError: if there is no such file, it is damaged or of another type, it unpacks to much more
        than its own size, or it contains Python objects, which could run any code.
    """
    path = pathlib.Path(path)
    try:
        with files.open_regular(path) as file:
            if zipfile.is_zipfile(file):
                return _load_npz(path, file, choose)
            file.seek(0)
            check_unpacked_size(_claimed(file), _size(file), path)
            file.seek(0)
            return {"images": np.load(file, allow_pickle=False)}
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except Exception as error:  # zipfile, zlib and NumPy raise errors of their own classes.
        raise DataError(f"{path} cannot be read as .npz or .npy: {_reason(error)}") from error


def mapped(path: str | pathlib.Path) -> np.ndarray:
    """Memory-maps the array of an `.npy` file: values are read when they are used.

    Raises:
      DataError: as `load`.
    """
    path = pathlib.Path(path)
    try:
        files.check_regular(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive like an .npz file")
        return array
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except Exception as error:  # as in `load`
        raise DataError(f"{path} cannot be read as .npy: {_reason(error)}") from error


def names(path: pathlib.Path) -> list[str]:
    """The names of the arrays in an `.npz` file. Raises DataError as `load`."""
    found = []
    load(path, lambda known: found.extend(known) or ())
    return found


def _load_npz(path, file, choose):
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(_END): info for info in archive.infolist()}
        chosen = list(choose(list(members)))
        # First the size of each member in the archive, then the size in the array's header.
        check_unpacked_size(sum(members[name].file_size for name in chosen), _size(file), path)
        check_unpacked_size(
            sum(_claimed_by(archive, members[name]) for name in chosen), _size(file), path
        )
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in chosen}


def _claimed_by(archive, member):
    with archive.open(member) as file:
        return _claimed(file)


def _claimed(file):
    """Size of the array in bytes according to the header of an .npy file, which it reads."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the .npy format is not supported")
    shape, _, dtype = _HEADERS[version](file)
    return math.prod(shape) * dtype.itemsize


def _size(file):
    return os.fstat(file.fileno()).st_size


def _reason(error):
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
