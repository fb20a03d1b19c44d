"""Writes prepared data sets, which `records.py` reads."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping

import grain
from array_record.python import array_record_module

from nvae_jax import files
from nvae_jax.data.faults import corrupt_images_error, warn_skipped
from nvae_jax.data.images import Images, encode
from nvae_jax.data.records import MANIFEST, VERSION
from nvae_jax.data.spec import CorruptError, DataError

_SHARD_BYTES = 2**28
_REMEDY = "skip such images with --skip_corrupt"


def write(
    directory: pathlib.Path,
    splits: Mapping[str, Images],
    *,
    name: str,
    skip_corrupt: bool = False,
) -> dict:
    """Writes a data set atomically: the folder `directory` appears when it is complete.

    Args:
      directory: folder of the data set; it must not exist.
      splits: the images of each split, all of the same shape.
      name: name of the data set, for the manifest.
      skip_corrupt: whether to skip unreadable images; the manifest counts them.

    Returns:
      the manifest.

    Raises:
      DataError: if `directory` exists or another process is writing it, a split is empty, or
        (without `skip_corrupt`) an image cannot be read.
    """
    with _building(directory) as building:
        _, height, _, channels = next(iter(splits.values())).shape
        manifest = {"version": VERSION, "name": name, "image_size": height, "channels": channels}
        manifest |= {"skipped": 0, "splits": {}}
        for split, images in splits.items():
            encoder = _Encoder(images, (height, height, channels), skip_corrupt)
            parts = _write_split(building, split, encoder.encoded(split))
            manifest["splits"][split] = parts
            manifest["skipped"] += len(images) - sum(part["count"] for part in parts)
        files.write_json(building / MANIFEST, manifest)
    return manifest


class _Encoder:
    """Encodes images as PNG in parallel threads, in their order."""

    def __init__(self, images: Images, shape: tuple[int, ...], skip_corrupt: bool):
        self._images, self._shape, self._skip = images, shape, skip_corrupt

    def encoded(self, split: str) -> Iterator[bytes]:
        """Yields the encoded images except skipped ones, and shows the progress on a terminal."""
        threads = os.cpu_count() or 1
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
        numbers = grain.MapDataset.range(len(self._images))
        try:
            for done, record in enumerate(numbers.map(self._encode).to_iter_dataset(options)):
                if sys.stderr.isatty() and done % 100 == 0:
                    print(f"\r{split}: {done} of {len(self._images)}", end="\r", file=sys.stderr)
                yield record
        except CorruptError as error:
            raise corrupt_images_error(self._images, error, _REMEDY) from error

    def _encode(self, index: int) -> bytes | None:
        try:
            image = self._images[index]
        except CorruptError as error:
            if not self._skip:
                raise
            warn_skipped(str(error))
            return None  # Grain skips it.
        if image.shape != self._shape:
            raise DataError(f"image {index} is {image.shape}, but others are {self._shape}")
        return encode(image)


def _write_split(directory: pathlib.Path, split: str, records: Iterator[bytes]) -> list[dict]:
    files = []
    for number in itertools.count():
        name = f"{split}-{number:05d}.array_record"
        count = _write_file(directory / name, records)
        if not count:
            (directory / name).unlink()
            break
        files.append({"name": name, "count": count, "bytes": (directory / name).stat().st_size})
    if not files:
        raise DataError(f"split {split!r} is empty")
    return files


def _write_file(path: pathlib.Path, records: Iterator[bytes]) -> int:
    # Groups of one record, so that reading one reads no others; PNG is already compressed.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    count = size = 0
    try:
        while size < _SHARD_BYTES and (record := next(records, None)) is not None:
            writer.write(record)
            count, size = count + 1, size + len(record)
    finally:
        _close(writer, path)
    return count


def _close(writer, path: pathlib.Path):
    try:
        writer.close()
    except RuntimeError as error:  # for example, if the disk is full
        reason = str(error).split("\n")[0]
        raise DataError(f"{path}: cannot be written ({reason})") from error


@contextlib.contextmanager
def _building(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A context that yields a temporary folder, which is renamed to `directory` at its end."""
    if directory.exists():
        raise DataError(f"{directory} already exists; name another folder or remove it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = directory.with_name(f".{directory.name}.incomplete")
    lock = directory.with_name(f".{directory.name}.lock")
    refusal = DataError(f"another process is preparing this data set ({lock})")
    with files.locked(lock, refusal):
        try:
            shutil.rmtree(building, ignore_errors=True)  # left by a process that was killed
            building.mkdir()
            yield building
            os.rename(building, directory)
        finally:
            shutil.rmtree(building, ignore_errors=True)
            lock.unlink(missing_ok=True)
