"""Copies on this machine of what is in buckets, for what is read at random: data sets, arrays.

They are in ~/.cache/nvae_jax/buckets and are brought up to date at every use: what has not changed
is not copied again.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from nvae_jax import files
from nvae_jax.buckets import BucketError, BucketPath, errors

AT_ONCE = 256  # files, after which those that are there are noted


def local(path: Path) -> Path:
    """A path of this machine with what `path` has: itself, or a copy of a file or folder in a
    bucket. Where there is nothing, there is none of the copy either.

    Raises:
      BucketError: the bucket cannot be read.
      ValueError: the copy does not fit the disk.
    """
    if not isinstance(path, BucketPath):
        return path
    home = files.cache_folder() or Path(tempfile.gettempdir()) / "nvae_jax"
    copy = home / "buckets" / path.scheme / str(path).partition("://")[2]
    notes = copy.with_name(f".{copy.name}.json")
    notes.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(notes.with_suffix(".lock")):
        _update(path, copy, notes)
    return copy


def existing(path: Path) -> Path:
    """As `local`. Raises ValueError, which names `path`, where nothing is there."""
    copy = local(path)
    if not copy.exists():
        raise ValueError(f"there is no file {path}")
    return copy


def _update(path, copy, notes):
    wanted = _contents(path)
    copied = _read(notes) if copy.exists() else {}
    for name in set(copied) - set(wanted):
        (copy / name).unlink(missing_ok=True)
    copied = {name: note for name, note in copied.items() if wanted.get(name) == note}
    missing = [name for name in wanted if name not in copied]
    if missing:
        size = sum(wanted[name][0] for name in missing)
        if size > (free := shutil.disk_usage(notes.parent).free):
            raise ValueError(
                f"{path} takes {size / 1e9:.3g} GB, and {notes.parent}, where it is to be copied "
                f"to, has {free / 1e9:.3g} GB left"
            )
        print(
            f"copying {path} to {copy}: {len(missing)} file(s), {size / 1e9:.3g} GB",
            file=sys.stderr,
            flush=True,
        )
    for begin in range(0, len(missing), AT_ONCE):
        some = missing[begin : begin + AT_ONCE]
        _download(path, copy, some)
        copied |= {name: wanted[name] for name in some}
        files.write_json(notes, copied)
    if not wanted:
        notes.unlink(missing_ok=True)


def _contents(path):
    """{name in the folder, "" of the object itself: [bytes, what changes with the content]}."""
    with errors(path):
        root = path.system._strip_protocol(str(path))
        found = path.system.find(root, detail=True) if path.exists() else {}
    contents = {}
    for name, info in found.items():
        relative = name.removeprefix(root).lstrip("/")
        if info["type"] != "file" or name.endswith("/"):
            continue
        if {".", ".."} & set(relative.split("/")) or "\0" in relative:
            raise BucketError(f"{path}: an object's name is none of a file: {name!r}")
        mark = next((info[key] for key in ("etag", "ETag", "mtime") if info.get(key)), "")
        contents[relative] = [info["size"], str(mark)]
    return contents


def _download(path, copy, names):
    """Each file appears whole: others may have the one before it open."""
    targets = [copy / name if name else copy for name in names]
    parts = [target.with_name(f".{target.name}.part") for target in targets]
    for folder in {part.parent for part in parts}:
        folder.mkdir(parents=True, exist_ok=True)
    with errors(path):
        sources = [str(path / name) if name else str(path) for name in names]
        path.system.get(sources, [str(part) for part in parts])
    for part, target in zip(parts, targets, strict=True):
        os.replace(part, target)


def _read(notes):
    try:
        return json.loads(notes.read_text())
    except (OSError, ValueError):
        return {}
