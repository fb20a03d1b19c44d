"""Finds a data set in its folder, or in a bucket, and opens one of its splits."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from nvae_jax import mirror, paths
from nvae_jax.data import sources, views
from nvae_jax.data.images import Images
from nvae_jax.data.records import Records, read_manifest
from nvae_jax.data.spec import DataError, DataSpec

_copies: dict[pathlib.Path, pathlib.Path] = {}  # {folder in a bucket: its local copy}


def open_images(spec: DataSpec, split: str) -> Images:
    """Opens one split of a data set, and warns if its size is not the published one.

    Raises:
      DataError: if the name or the split is unknown, files are missing or faulty, or it is empty.
    """
    source = sources.get_source(spec.name)
    form, found = _find(spec)
    if split not in found:
        raise DataError(_no_split(spec, split, tuple(found)))
    channels = spec.channels if source.channels == 0 else source.channels
    more = _depth(spec, source, form)
    images = form.open(found[split], split, channels, spec.max_value, **more)
    if len(images) == 0:
        raise DataError(f"data set {spec.name!r}: its split {split!r} is empty")
    _compare_size(spec.name, split, len(images))
    if isinstance(form, Records):
        return images  # resized when it was prepared
    return _adapt(images, spec, source)


def _depth(spec: DataSpec, source: sources.Source, form: sources.Format) -> dict[str, int]:
    """The arguments of `Format.open` for more than 8 bits per value."""
    if spec.num_bits <= 8:
        return {}
    if not source.deep or isinstance(form, Records):
        subject = "prepared data sets have" if source.deep else f"data set {spec.name!r} has"
        raise DataError(
            f"data.num_bits={spec.num_bits}: {subject} 8 bits per value; more are supported only "
            "for grey image files (data.name=folder) and arrays (data.name=arrays), unprepared"
        )
    return {"num_bits": spec.num_bits}


def fitted(images: Images, spec: DataSpec) -> Images:
    """Crops and resizes images of any size like those of the data set, without padding."""
    boxes = sources.SOURCES[spec.name].boxes if spec.name in sources.SOURCES else {}
    return views.Resized(images, spec.unpadded_size, boxes)


def names(spec: DataSpec) -> tuple[str, ...]:
    """The names of the splits that a data set has."""
    return tuple(_find(spec)[1])


def resolve_split(spec: DataSpec, split: str) -> str:
    """Returns the split to evaluate: "validation" instead of "test" if there is no test split.

    Raises:
      DataError: if there is no such split.
    """
    known = names(spec)
    if split == "test" and split not in known and "validation" in known:
        return "validation"
    if split not in known:
        raise DataError(_no_split(spec, split, known))
    return split


def _no_split(spec: DataSpec, split: str, known: tuple[str, ...]) -> str:
    return f"data set {spec.name!r} has no split {split!r}, only {', '.join(known)}"


def locate(spec: DataSpec) -> tuple[sources.Format, Mapping[str, Any]] | None:
    """Finds a data set: returns its format and {split: what `Format.open` needs}, or None."""
    source = sources.get_source(spec.name)
    for place in map(_local, _places(spec, source)):
        for form in (Records(), *source.formats):
            if found := form.find(place):
                if isinstance(form, Records):
                    _check_name(spec, place)
                return form, found
    return None


def _local(place: pathlib.Path) -> pathlib.Path:
    """A local folder; one in a bucket is copied once per process."""
    if place not in _copies:
        copy = mirror.local(place)
        if not copy.exists():
            return copy
        _copies[place] = copy
    return _copies[place]


def _find(spec: DataSpec) -> tuple[sources.Format, Mapping[str, Any]]:
    located = locate(spec)
    if located is None:
        raise DataError(_missing(spec))
    return located


def _places(spec: DataSpec, source: sources.Source) -> Iterator[pathlib.Path]:
    root = paths.parse(spec.dir or sources.DEFAULT_ROOT)
    yield root / spec.name
    if spec.dir:
        yield root
    elif source.place:
        yield pathlib.Path(source.place)


def _check_name(spec: DataSpec, place: pathlib.Path):
    name = read_manifest(place)["name"]
    if name != spec.name and spec.name != "folder":
        raise DataError(f"{place} holds the prepared data set {name!r}, not {spec.name!r}")


def _missing(spec: DataSpec) -> str:
    source = sources.get_source(spec.name)
    places = list(_places(spec, source))
    looked = " or ".join(str(place) for place in places)
    absent = "" if any(place.exists() for place in places) else " (no such folder)"
    advice = source.advice and f" ({source.advice})"
    return (
        f"data set {spec.name!r} is not in {looked}{absent}{advice}. Name its folder with "
        f"--config.data.dir=DIR: it can hold {sources.describe_formats(source)}; or the output of "
        f"launch/prepare_data.py --name={spec.name}"
    )


@functools.cache  # one warning, however often a data set is opened
def _compare_size(name: str, split: str, found: int):
    source = sources.SOURCES[name]
    published = source.sizes.get(split)
    if not published or found in published:
        return
    if source.twin and found in sources.SOURCES[source.twin].sizes[split]:
        raise DataError(
            f"data set {name!r}: {found} images in split {split} indicate {source.twin!r}; bits "
            f"per dimension of the two are not comparable: use the name {source.twin}"
        )
    logging.warning(
        "data set %s: %d images in split %s, but the published number is %s: results are not "
        "comparable with published ones.",
        *(name, found, split, " or ".join(map(str, published))),
    )


def _adapt(images: Images, spec: DataSpec, source: sources.Source) -> Images:
    if source.resize:
        asked = spec.image_size and spec.unpadded_size
        size = asked or source.size or min(images.shape[1:3])
        images = views.Resized(images, size, source.boxes)
    return source.wrap(images) if source.wrap else images
