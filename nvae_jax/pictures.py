"""Pictures, animations and arrays on disk, each with what made it."""

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

ENLARGED = 800  # smaller pictures are enlarged, so that a person sees the pixels
ANIMATION_SIZE = 320  # the same of animations, which have many frames
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
GREY = 128  # of grids, between pictures


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8, rounded."""
    return to_range(images, 8)


def to_range(images: np.ndarray, num_bits: int) -> np.ndarray:
    """Images in [0, 1], rounded: as uint8 of [0, 255], or for more than 8 bits as uint16 of
    [0, 65535]."""
    return _rounded(images, 255 if num_bits <= 8 else 65535)


def to_values(images: ArrayLike, num_bits: int) -> np.ndarray:
    """Images in [0, 1] as files of arrays hold them: uint8 of [0, 255], or for more than 8 bits the
    values of so many bits, as uint16."""
    return _rounded(images, 2 ** max(num_bits, 8) - 1)


def value_metadata(num_bits: int) -> dict[str, int]:
    """What files of arrays say beside values of more than 8 bits: {} or which of them is white."""
    return {} if num_bits <= 8 else {depth.NOTE: 2**num_bits - 1}


def _rounded(images, white):
    scaled = np.round(np.clip(np.asarray(images, np.float32), 0, 1) * np.float32(white))
    return scaled.astype(np.uint8 if white == 255 else np.uint16)


def image_grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Lays out uint8 or uint16 images (N, H, W, C) row by row, as (rows·(H+1), columns·(W+1), 3).

    `columns` defaults to a grid as square as N allows; missing places stay grey, and so does the
    line between neighbours.
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
    """Interleaves two (N, H, W, C) sets so that in a square grid each row of the first stands
    over its row of the second."""
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
    """Writes one image (H, W, C), uint8, or uint16 over its whole range: with 16 bits if that is
    grey, otherwise with 8. `metadata` {name: value} becomes its text chunks."""
    info = PngImagePlugin.PngInfo()
    noted = value_metadata(16) if image.dtype == np.uint16 else {}
    for name, value in {**(metadata or {}), **noted}.items():
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
    """Writes images (N, H, W, C) as one picture, row by row: in [0, 1], or integers over the whole
    range of their dtype. More than 8 bits make it a picture of 16, see `save_png`."""
    images = images if images.dtype.kind == "u" else to_range(images, num_bits)
    save_png(path, image_grid(images, columns), metadata, enlarge=True)


def save_animation(
    path: str | Path,
    frames: np.ndarray,
    metadata: Mapping[str, Any] | None = None,
    seconds: float = 3.0,
) -> None:
    """Writes frames (N, H, W, C), uint8 or in [0, 1], as an endless animation there and back.

    Args:
      path: ends in .gif or .webp.
      frames: all of one size.
      metadata: {name: value}, kept in a comment (GIF) or the EXIF description (WebP).
      seconds: from the first frame to the last.

    Raises:
      ValueError: the path has another ending.
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
    """A Pillow image, enlarged by as much as keeps it within `size`."""
    factor = max(1, size // max(image.shape[:2]))
    image = image.repeat(factor, 0).repeat(factor, 1)
    grey = (image == image[..., :1]).all()  # as one channel it takes less room
    if image.dtype == np.uint16 and not grey:
        image = depth.scale(image, 65535, 8)  # Pillow has no colours of 16 bits
    return Image.fromarray(image[..., 0] if grey else image)


class ArrayStream:
    """Writes one array of known shape to an `.npz` file piece by piece, so that memory does not
    grow with it. The file appears when everything is there.

    Args:
      path: of the file.
      name: of the array in it.
      shape: of the whole array; pieces are cut along the first axis.
      dtype: of the array.
      arrays: small ones that go along, {name: value}.
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
        """Adds the next rows."""
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
    """Writes small arrays to an `.npz` file, at once or not at all."""
    with files.atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
