"""Local copies of data sets and arrays in buckets, which are read in random order.

The copies are in ~/.cache/nvae_jax/buckets. Each use updates them by downloading only the files
that have changed.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from nvae_jax import files
from nvae_jax.buckets import BucketError, BucketPath, errors

FILES_PER_DOWNLOAD = 256  # after which the list of copied files is saved


def local(path: Path) -> Path:
    """Returns `path` itself if it is local, otherwise the path of an up-to-date local copy.

    If there is no such file or folder in the bucket, the returned path does not exist either.

    Raises:
      BucketError: if the bucket cannot be read.
      ValueError: if the copy does not fit the disk.
    """
    if not isinstance(path, BucketPath):
        return path
    home = files.cache_folder() or Path(tempfile.gettempdir()) / "nvae_jax"
    copy = home / "buckets" / path.scheme / str(path).partition("://")[2]
    index = copy.with_name(f".{copy.name}.json")
    index.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(index.with_suffix(".lock")):
        _update(path, copy, index)
    return copy


def existing(path: Path) -> Path:
    """Like `local`, but raises ValueError, naming `path`, if it does not exist."""
    copy = local(path)
    if not copy.exists():
        raise ValueError(f"there is no file {path}")
    return copy


def _update(path, copy, index):
    wanted = _contents(path)
    copied = _read(index) if copy.exists() else {}
    for name in set(copied) - set(wanted):
        (copy / name).unlink(missing_ok=True)
    copied = {name: version for name, version in copied.items() if wanted.get(name) == version}
    missing = [name for name in wanted if name not in copied]
    if missing:
        size = sum(wanted[name][0] for name in missing)
        if size > (free := shutil.disk_usage(index.parent).free):
            raise ValueError(
                f"{path} takes {size / 1e9:.3g} GB, and {index.parent}, where it is to be copied "
                f"to, has {free / 1e9:.3g} GB left"
            )
        print(
            f"copying {path} to {copy}: {len(missing)} file(s), {size / 1e9:.3g} GB",
            file=sys.stderr,
            flush=True,
        )
    for begin in range(0, len(missing), FILES_PER_DOWNLOAD):
        some = missing[begin : begin + FILES_PER_DOWNLOAD]
        _download(path, copy, some)
        copied |= {name: wanted[name] for name in some}
        files.write_json(index, copied)
    if not wanted:
        index.unlink(missing_ok=True)


def _contents(path):
    """{name: [size in bytes, etag or time of modification]} of all objects in a folder.

    Names are relative to `path`; if `path` is itself an object, its name is "".
    """
    with errors(path):
        root = path.system._strip_protocol(str(path))
        found = path.system.find(root, detail=True) if path.exists() else {}
    contents = {}
    for name, info in found.items():
        relative = name.removeprefix(root).lstrip("/")
        if info["type"] != "file" or name.endswith("/"):
            continue
        if {".", ".."} & set(relative.split("/")) or "\0" in relative:
            raise BucketError(f"{path}: an object's name cannot be a file's name: {name!r}")
        mark = next((info[key] for key in ("etag", "ETag", "mtime") if info.get(key)), "")
        contents[relative] = [info["size"], str(mark)]
    return contents


def _download(path, copy, names):
    """Downloads files atomically, because other processes may have an older version open."""
    targets = [copy / name if name else copy for name in names]
    parts = [target.with_name(f".{target.name}.part") for target in targets]
    for folder in {part.parent for part in parts}:
        folder.mkdir(parents=True, exist_ok=True)
    with errors(path):
        sources = [str(path / name) if name else str(path) for name in names]
        path.system.get(sources, [str(part) for part in parts])
    for part, target in zip(parts, targets, strict=True):
        os.replace(part, target)


def _read(index):
    try:
        return json.loads(index.read_text())
    except (OSError, ValueError):
        return {}
