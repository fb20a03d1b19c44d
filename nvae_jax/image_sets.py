"""Opens sets of images that a user names (a split, a file or folder, or another data set) and reads
them in batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nvae_jax import inputs, mirror, paths
from nvae_jax.data import folder, sources, splits
from nvae_jax.data.faults import warn_skipped
from nvae_jax.data.images import SUFFIXES, Images
from nvae_jax.data.spec import CorruptError, DataError, DataSpec


@dataclass(frozen=True)
class ImageSet:
    """Images without padding, of the same shape as a run's data.

    Attributes:
      name: name of the set in tables and messages.
      images: random access to the images, which are read on demand.
      files: the file name of each image, if each is a file of its own.
      skip_corrupt: whether to skip unreadable images.
    """

    name: str
    images: Images | np.ndarray
    files: list[str] | None = None
    skip_corrupt: bool = False

    def batches(
        self, size: int, num: int | None = None, first: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields batches of images with their numbers.

        Args:
          size: largest size of a batch; the last one, and those with unreadable images, are
            smaller.
          num: stop after this many images of the set; None reads all.
          first: number of the first image to read.

        Yields:
          (numbers (B,), images (B, H, W, C)).
        """
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
    """Opens the images that `source` names.

    Args:
      spec: the run's `DataSpec`.
      source: one of these: a split of the run's data set ("test" is the validation split if there
        is no test split); a file or folder for `inputs.load`; or the name of another data set in
        its usual folder, whose test split is resized to the run's image size.

    Raises:
      ValueError: if it is none of these, or its images do not fit the run.
    """
    found = _open_split(spec, source) or _open_file(spec, source) or _open_data_set(spec, source)
    if found is None:
        known = ", ".join(sorted(sources.SOURCES))
        raise ValueError(
            f"{source!r} is neither a file or folder, nor a split of {spec.name!r} "
            f"({', '.join(splits.names(spec))}), nor a data set ({known})"
        )
    inputs.check_shape(found.images, spec, found.name)
    return found


def _open_split(spec, source):
    if source not in ("train", "validation", "test"):
        return None
    split = splits.resolve_split(spec, source)
    images = splits.open_images(spec, split)
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
    # The run's own data set is read from the run's folder, others from their default folders.
    directory = spec.dir if source == spec.name else ""
    other = DataSpec(name=source, dir=directory, image_size=0, channels=spec.channels)
    split = splits.resolve_split(other, "test")
    images = splits.open_images(other, split)
    if images.shape[-1] != spec.channels:
        raise DataError(
            f"images of data set {source!r} have {images.shape[-1]} channel(s), but the run's "
            f"images have {spec.channels}"
        )
    return ImageSet(f"{source} {split}", splits.fitted(images, spec))
