"""Paths as users write them. One that is none is refused here, before anything is written.

Whatever takes a path from a flag, a config or Python asks `parse` for it, and gets one of this
machine or one in a bucket, with the same methods.
"""

import os
import re
from pathlib import Path
from typing import Any, cast

from nvae_jax import buckets

# Path("gs://bucket") has become gs:/bucket: one slash is enough.
SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):(/+)")


def parse(path: str | os.PathLike, name: str = "") -> Path:
    """`path`, where there may be something or nothing; ~ is the user's home.

    Args:
      path: text, or a path.
      name: what the user calls it: a flag, a key or an argument.

    Returns:
      a path of this machine, or a `buckets.BucketPath`.

    Raises:
      ValueError: it has another scheme (https://, file:/// ...), is empty, or is no path at all.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if problem := _problem(text):
        raise ValueError(f"{name}={text!r}: {problem}" if name else problem)
    if scheme := SCHEME.match(text):
        return cast(Path, buckets.BucketPath(f"{scheme[1]}://{text[scheme.end() :]}"))
    return Path(os.path.expanduser(text))


def is_bucket(path: Any) -> bool:
    """Whether a path of `parse` is one in a bucket."""
    return isinstance(path, buckets.BucketPath)


def same(path: Path, other: str | os.PathLike) -> bool:
    """Whether two paths are of one file or folder that is there."""
    other = parse(other)
    if is_bucket(path) != is_bucket(other) or not (path.exists() and other.exists()):
        return False
    return path.samefile(other)


def _problem(text):
    if not isinstance(text, str):
        return "it is no path"
    if not text.strip():
        return "it is empty, where a path is wanted"
    if "\0" in text:
        return "a path has no NUL bytes"
    if not (scheme := SCHEME.match(text)):
        return None
    if scheme[1] not in buckets.SCHEMES:
        return (
            f"{scheme[1]}:{scheme[2]} cannot be used: name a path of this machine's file system, "
            "or of a bucket (gs://, s3://)"
        )
    rest = text[scheme.end() :]
    if not rest or set(rest.split("/")) & {".", ".."}:
        return f"a path in a bucket looks like {scheme[1]}://BUCKET/FOLDER"
    if set(rest) & set("*?[]"):
        return "a path in a bucket has none of * ? [ ], which stand for several there"
    return None


def check_writable(path: str | os.PathLike, name: str) -> Path:
    """`parse(path)`, where a file can be made or replaced, in folders that may have to be made.

    Raises:
      ValueError: it is a folder, something in its way is no folder, or may not be written to.
      BucketError: a bucket is not there, or may not be written to.
    """
    path = parse(path, name)
    if path.is_dir():
        raise ValueError(f"{name}: {path} is a folder, where a file is to be written")
    if path.exists() and not path.is_file():
        raise ValueError(f"{name}: {path} is no regular file")
    if isinstance(path, buckets.BucketPath):
        buckets.check(path, writable=True)
        return path
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{name}: {folder} is a file, where a folder is wanted")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: {folder} cannot be written to")
    return path
