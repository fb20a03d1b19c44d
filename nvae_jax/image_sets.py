"""Sets of images as a user names them, read piece by piece: a split, a file or folder, or another
data set."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nvae_jax import inputs, mirror, paths
from nvae_jax.data import folder, sources
from nvae_jax.data.faults import warn_skipped
from nvae_jax.data.images import SUFFIXES, Images
from nvae_jax.data.spec import CorruptError, DataError, DataSpec


@dataclass(frozen=True)
class ImageSet:
    """Images without padding, of the shape that a run has.

    Attributes:
      name: for people.
      images: read when asked for.
      files: the file of each, where they are pictures on their own.
      skip_corrupt: whether unreadable ones are left out.
    """

    name: str
    images: Images | np.ndarray
    files: list[str] | None = None
    skip_corrupt: bool = False

    def batches(
        self, size: int, num: int | None = None, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (numbers (B,), images (B, H, W, C)) of the first `num` images, or of all, from
        number `first` on. B is less than `size` in the end, and where unreadable ones are left
        out."""
        end = min(num or len(self.images), len(self.images))
        for start in range(first, end, size):
            numbers = np.arange(start, min(start + size, end))
            if self.skip_corrupt:
                numbers = np.array([i for i in numbers if self._is_readable(i)], np.int64)
            yield numbers, inputs.take(self.images, numbers)

    def _is_readable(self, number):
        try:
            self.images[int(number)]
        except CorruptError as error:
            warn_skipped(str(error))
            return False
        return True


def open_set(spec: DataSpec, source: str) -> ImageSet:
    """The images that `source` names.

    Args:
      spec: the run's `DataSpec`.
      source: a split of its data set, "test" for the validation split of a set without one; a file
        or folder for `inputs.load`; or the name of another data set where it is usually found, of
        which the test split is taken, resized to the run's size.

    Raises:
      ValueError: it is none of these, or has no images that suit the run.
    """
    found = _open_split(spec, source) or _open_file(spec, source) or _open_data_set(spec, source)
    if found is None:
        known = ", ".join(sorted(sources.SOURCES))
        raise ValueError(
            f"{source!r} is no file or folder, no split of {spec.name!r} "
            f"({', '.join(sources.splits(spec))}) and no data set ({known})"
        )
    inputs.check_shape(found.images, spec, found.name)
    return found


def _open_split(spec, source):
    if source not in ("train", "validation", "test"):
        return None
    split = sources.resolve_split(spec, source)
    images = sources.open_images(spec, split)
    return ImageSet(f"{spec.name} {split}", images, skip_corrupt=spec.skip_corrupt)


def _open_file(spec, source):
    path = paths.parse(source)
    looks_like_one = "/" in source or path.suffix.lower() in (*inputs.ARRAYS, *SUFFIXES)
    if not path.exists() and not looks_like_one:
        return None
    images, files = inputs.load(path, spec), None
    if (local := mirror.local(path)).is_dir():
        files = [picture.relative_to(local).as_posix() for picture in folder.pictures(local)]
    return ImageSet(path.name or str(path), images, files)


def _open_data_set(spec, source):
    if source not in sources.SOURCES:
        return None
    # Of the same data set only another folder would differ.
    place = spec.dir if source == spec.name else ""
    other = DataSpec(name=source, dir=place, image_size=0, channels=spec.channels)
    split = sources.resolve_split(other, "test")
    images = sources.open_images(other, split)
    if images.shape[-1] != spec.channels:
        raise DataError(
            f"data set {source!r} has images of {images.shape[-1]} channel(s), where the run's "
            f"have {spec.channels}"
        )
    return ImageSet(f"{source} {split}", sources.fitted(images, spec))
