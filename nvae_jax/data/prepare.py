"""Prepares data sets from a user's files or by download."""

from __future__ import annotations

import importlib.util
import pathlib
import tempfile

from nvae_jax import buckets, extras, mirror, paths
from nvae_jax.buckets import BucketPath
from nvae_jax.data import record_writer, records, sources, splits
from nvae_jax.data.spec import DataError, DataSpec
from nvae_jax.data.tfds_set import Tfds


def prepare(
    name: str,
    data_dir: str = "",
    *,
    manual_dir: str = "",
    image_size: int = 0,
    channels: int = 0,
    skip_corrupt: bool = False,
    max_value: int = 0,
) -> str:
    """Prepares the data set `name` as the folder `data_dir`/`name`.

    Args:
      name: a data set of `sources.py`.
      data_dir: folder of all prepared data sets; "" uses the default folder.
      manual_dir: folder with the data set's files, in any format that it can be read from. Without
        one, the data set is downloaded if tensorflow-datasets supports it.
      image_size: height and width to resize images to; 0 uses the data set's own size.
      channels: 1 converts a folder's images to grey, 3 to colour; 0 leaves them as they are.
      skip_corrupt: whether to skip unreadable images instead of stopping.
      max_value: value of white in images of more than 8 bits; 0 uses the value that they state.

    Returns:
      one line for the user that says what was done and how to use it.

    Raises:
      DataError: if there are no files (the message says what to put where), or the data are faulty.
        No incomplete data set is left behind.
    """
    source = sources.get_source(name)
    directory = paths.parse(data_dir or sources.DEFAULT_ROOT) / name
    spec = DataSpec(
        name,
        dir=_checked(manual_dir),
        image_size=image_size or source.size,
        channels=channels or source.channels,
        skip_corrupt=skip_corrupt,
        max_value=max_value,
    )
    if (directory / records.MANIFEST).is_file():
        return _already(spec, directory)
    if isinstance(directory, BucketPath):
        return _upload(spec, directory)
    if not manual_dir:
        return _without_files(spec, source, directory)
    if splits.locate(spec):
        return _convert(spec, directory)
    if source.tfds:  # tensorflow-datasets recognises and unpacks the original archives.
        return _run_tfds(spec, source, source.tfds, directory)
    raise DataError(_nothing_found(spec, source))


def _upload(spec: DataSpec, directory: BucketPath) -> str:
    """Prepares a data set locally and uploads it, the manifest last: it marks the end."""
    buckets.check(directory / records.MANIFEST, writable=True)
    with tempfile.TemporaryDirectory() as folder:
        built = pathlib.Path(folder, spec.name)
        message = prepare(
            spec.name,
            folder,
            manual_dir=spec.dir,
            image_size=spec.image_size,
            channels=spec.channels,
            skip_corrupt=spec.skip_corrupt,
            max_value=spec.max_value,
        )
        found = [path for path in built.rglob("*") if path.is_file()]
        for path in sorted(found, key=lambda path: path.name == records.MANIFEST):
            (directory / path.relative_to(built)).upload(path)
    return message.replace(str(built), str(directory))


def _checked(manual_dir: str) -> str:
    path = mirror.local(paths.parse(manual_dir or ".", "manual_dir"))
    if manual_dir and not path.is_dir():
        raise DataError(f"--manual_dir={manual_dir}: no such folder")
    return str(path) if manual_dir else ""


def _already(spec: DataSpec, directory: pathlib.Path) -> str:
    manifest = records.read_manifest(directory)
    if spec.image_size not in (0, manifest["image_size"]):
        raise DataError(
            f"{directory} is already prepared, at size {manifest['image_size']}: for size "
            f"{spec.image_size} name another --data_dir"
        )
    return f"Nothing to do: already prepared {_summary(manifest)}. {_usage(spec, directory)}"


def _without_files(spec: DataSpec, source: sources.Source, directory: pathlib.Path) -> str:
    if source.by_hand:
        raise DataError(
            f"{spec.name} cannot be downloaded: {source.by_hand}. Then run: "
            f"python launch/prepare_data.py --name={spec.name} --manual_dir=MANUAL_DIR"
        )
    if source.tfds and not (source.place and pathlib.Path(source.place).is_dir()):
        return _run_tfds(spec, source, source.tfds, directory)
    counts = ", ".join(f"{len(splits.open_images(spec, s))} {s}" for s in splits.names(spec))
    return f"Nothing to do: {spec.name} is on this machine ({counts} images)"


def _convert(spec: DataSpec, directory: pathlib.Path) -> str:
    images = {split: splits.open_images(spec, split) for split in splits.names(spec)}
    manifest = record_writer.write(
        directory, images, name=spec.name, skip_corrupt=spec.skip_corrupt
    )
    return f"Prepared {_summary(manifest)}. {_usage(spec, directory)}"


def _run_tfds(
    spec: DataSpec, source: sources.Source, tfds_set: Tfds, directory: pathlib.Path
) -> str:
    """Downloads and prepares a data set with tensorflow-datasets."""
    why = f"{_nothing_found(spec, source)}. To download it tensorflow-datasets"
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"{why} needs tensorflow (training does not): pip install 'nvae_jax[download]'"
        )
    tfds = extras.load("tensorflow_datasets", "download", why)

    builder = tfds_set.builder(directory, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=spec.dir or None)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # network, disk, checksums, archives: each raises its own classes
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise DataError(f"tensorflow-datasets could not prepare {spec.name}: {reason}") from error
    return f"Prepared {spec.name} with tensorflow-datasets. {_usage(spec, directory)}"


def _nothing_found(spec: DataSpec, source: sources.Source) -> str:
    where = f"none of its files is in {spec.dir}" if spec.dir else "no --manual_dir is given"
    hint = source.by_hand.replace("MANUAL_DIR", spec.dir or "MANUAL_DIR")
    advice = source.advice and f" ({source.advice})"
    expected = hint or f"it can hold {sources.describe_formats(source)}{advice}"
    return f"{spec.name}: {where}; {expected}"


def _summary(manifest: dict) -> str:
    counts = ", ".join(
        f"{sum(file['count'] for file in files)} {split}"
        for split, files in manifest["splits"].items()
    )
    size, skipped = manifest["image_size"], manifest["skipped"]
    text = f"{manifest['name']}: {counts} images of {size}x{size}x{manifest['channels']}"
    return f"{text}, {skipped} unreadable ones skipped" if skipped else text


def _usage(spec: DataSpec, directory: pathlib.Path) -> str:
    own = spec.name == "folder"
    chosen = "--config=folder" if own else f"--config.data.name={spec.name}"
    return f"Train on it with {chosen} --config.data.dir={directory}"
