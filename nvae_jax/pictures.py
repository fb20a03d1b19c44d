"""Writes images, animations and arrays to files, with metadata about how they were made."""

import contextlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from PIL import Image, PngImagePlugin

from nvae_jax import files, paths
from nvae_jax.data import depth

ENLARGED = 800  # smaller images are enlarged up to this size, so that their pixels can be seen
ANIMATION_SIZE = 320  # the same for animations, which have many frames
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
GREY = 128  # of the lines between the images of a grid


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Converts images in [0, 1] to uint8 by rounding."""
    return to_range(images, 8)


def to_range(images: np.ndarray, num_bits: int) -> np.ndarray:
    """Rounds images in [0, 1] to integers over the full range of their dtype: uint8, or uint16 for
    more than 8 bits."""
    return _rounded(images, 255 if num_bits <= 8 else 65535)


def to_values(images: ArrayLike, num_bits: int) -> np.ndarray:
    """Rounds images in [0, 1] to the integers that array files contain: uint8 in [0, 255], or for
    more than 8 bits uint16 in [0, 2**num_bits - 1]."""
    return _rounded(images, 2 ** max(num_bits, 8) - 1)


def value_metadata(num_bits: int) -> dict[str, int]:
    """Metadata of array files with values of more than 8 bits: the value of white; otherwise {}."""
    return {} if num_bits <= 8 else {depth.WHITE_KEY: 2**num_bits - 1}


def _rounded(images, white):
    scaled = np.round(np.clip(np.asarray(images, np.float32), 0, 1) * np.float32(white))
    return scaled.astype(np.uint8 if white == 255 else np.uint16)


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Arranges uint8 or uint16 images (N, H, W, C) row by row in one image
    (rows·(H+1), columns·(W+1), 3).

    `columns` defaults to a grid that is as square as possible. Empty places, and the lines between
    images, are grey.
    """
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    grey = GREY * (np.iinfo(images.dtype).max // 255)
    blanks = np.full((-len(images) % columns, *images.shape[1:]), grey, images.dtype)
    images = np.concatenate([images, blanks])
    gutter = ((0, 0), (0, 1), (0, 1), (0, 0))
    images = np.pad(images, gutter, constant_values=grey)
    rows = [np.concatenate(row, axis=1) for row in np.split(images, len(images) // columns)]
    grid = np.concatenate(rows)
    return np.repeat(grid, 3, axis=-1) if grid.shape[-1] == 1 else grid


def pair_rows(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Interleaves two sets of images (N, H, W, C) so that in a square grid each row of the first
    set is above the corresponding row of the second."""
    above, below = np.asarray(above), np.asarray(below)
    columns = int(np.ceil(np.sqrt(2 * len(above))))
    parts = [a[i : i + columns] for i in range(0, len(above), columns) for a in (above, below)]
    return np.concatenate(parts)


def save_png(
    path: str | Path,
    image: np.ndarray,
    metadata: Mapping[str, Any] | None = None,
    enlarge: bool = False,
) -> None:
    """Writes one image as PNG.

    Args:
      path: the file to write.
      image: (H, W, C), uint8 or uint16 over the full range. Grey uint16 images are written with 16
        bits, coloured ones with 8.
      metadata: {name: value}, stored in text chunks.
      enlarge: whether to enlarge small images up to `ENLARGED` pixels.
    """
    info = PngImagePlugin.PngInfo()
    white = value_metadata(16) if image.dtype == np.uint16 else {}
    for name, value in {**(metadata or {}), **white}.items():
        info.add_text(name, value if isinstance(value, str) else files.to_json(value))
    picture = _picture(image, ENLARGED if enlarge else 0)
    with files.atomic_write(path) as temporary:
        picture.save(temporary, "PNG", pnginfo=info, optimize=True)


def save_grid(
    path: str | Path,
    images: np.ndarray,
    metadata: Mapping[str, Any] | None = None,
    columns: int | None = None,
    num_bits: int = 8,
) -> None:
    """Writes images as one PNG, row by row.

    Args:
      path: the file to write.
      images: (N, H, W, C), float in [0, 1], or integers over the full range of their dtype.
      metadata: {name: value}, stored in text chunks.
      columns: number of columns; see `image_grid`.
      num_bits: of float images, more than 8 bits write a PNG of 16 bits; see `save_png`.
    """
    images = images if images.dtype.kind == "u" else to_range(images, num_bits)
    save_png(path, image_grid(images, columns), metadata, enlarge=True)


def save_animation(
    path: str | Path,
    frames: np.ndarray,
    metadata: Mapping[str, Any] | None = None,
    seconds: float = 3.0,
) -> None:
    """Writes frames as an endless animation that plays forwards and backwards.

    Args:
      path: a file name ending in .gif or .webp.
      frames: (N, H, W, C), uint8 or float in [0, 1].
      metadata: {name: value}, stored in a comment (GIF) or in the EXIF description (WebP).
      seconds: time from the first frame to the last.

    Raises:
      ValueError: if the path has another ending.
    """
    path = paths.parse(path)
    if path.suffix not in ANIMATIONS:
        raise ValueError(f"{path} must end in {' or '.join(ANIMATIONS)}")
    frames = frames if frames.dtype == np.uint8 else to_uint8(frames)
    pictures = [_picture(frame, ANIMATION_SIZE) for frame in [*frames, *frames[-2:0:-1]]]
    options: dict[str, Any] = {"duration": max(round(1000 * seconds / len(frames)), 20), "loop": 0}
    comment = files.to_json(metadata or {})
    if path.suffix == ".gif":
        options["comment"] = comment.encode()
    else:
        exif = Image.Exif()
        exif[0x010E] = comment  # ImageDescription
        options.update(exif=exif, quality=90)
    with files.atomic_write(path) as temporary:
        pictures[0].save(
            temporary,
            ANIMATIONS[path.suffix],
            save_all=True,
            append_images=pictures[1:],
            **options,
        )


def _picture(image, size):
    """Converts to a Pillow image, enlarged by the largest integer that keeps it within `size`."""
    factor = max(1, size // max(image.shape[:2]))
    image = image.repeat(factor, 0).repeat(factor, 1)
    grey = (image == image[..., :1]).all()  # one channel makes a smaller file
    if image.dtype == np.uint16 and not grey:
        image = depth.scale(image, 65535, 8)  # Pillow does not support colours of 16 bits
    return Image.fromarray(image[..., 0] if grey else image)


class ArrayStream:
    """Writes an array to an `.npz` file in pieces, so that it need not fit in memory.

    Use it as a context manager. The file appears at the end of the context, when it is complete.

    Args:
      path: the file to write.
      name: name of the array in the file.
      shape: shape of the whole array; pieces are consecutive along the first axis.
      dtype: dtype of the array.
      **arrays: {name: value} of small arrays to store in the same file.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        shape: Sequence[int],
        dtype: DTypeLike,
        **arrays: ArrayLike,
    ):
        self._path, self._missing, self._opened = (
            paths.parse(path),
            shape[0],
            contextlib.ExitStack(),
        )
        enter = self._opened.enter_context
        temporary = enter(files.atomic_write(path))
        archive = enter(zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1))
        for other, value in arrays.items():
            with archive.open(f"{other}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
        self._member = enter(archive.open(f"{name}.npy", "w", force_zip64=True))
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        header = {"descr": descr, "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(self._member, header)

    def write(self, piece: np.ndarray) -> None:
        """Writes the next rows of the array."""
        self._missing -= len(piece)
        self._member.write(np.ascontiguousarray(piece).tobytes())

    def __enter__(self):
        return self

    def __exit__(self, kind, *details):
        if kind is not None:
            self._opened.__exit__(kind, *details)
            return
        with self._opened:
            if self._missing:
                raise ValueError(f"{self._path}: {self._missing} row(s) are missing")


def save_arrays(path: str | Path, **arrays: Any) -> None:
    """Writes arrays to an `.npz` file atomically."""
    with files.atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
