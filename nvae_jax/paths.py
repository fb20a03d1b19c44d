"""Parses and checks paths from users.

Code that receives a path from a flag, a config or a Python caller passes it to `parse`, which
returns a local path or a path in a bucket; both have the same methods.
"""

import os
import re
from pathlib import Path
from typing import Any, cast

from nvae_jax import buckets

# One slash is enough, because Path("gs://bucket") is converted to "gs:/bucket".
SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):(/+)")


def parse(path: str | os.PathLike, name: str = "") -> Path:
    """Converts a user's path, which need not exist, and expands ~ to the home folder.

    Args:
      path: a string or a path.
      name: name of the flag, key or argument that it comes from, for the error message.

    Returns:
      a local path, or a `buckets.BucketPath`.

    Raises:
      ValueError: if it has an unsupported scheme (such as https://), is empty, or is not a path.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if problem := _problem(text):
        raise ValueError(f"{name}={text!r}: {problem}" if name else problem)
    if scheme := SCHEME.match(text):
        return cast(Path, buckets.BucketPath(f"{scheme[1]}://{text[scheme.end() :]}"))
    return Path(os.path.expanduser(text))


def is_bucket(path: Any) -> bool:
    """Whether a path returned by `parse` is in a bucket."""
    return isinstance(path, buckets.BucketPath)


def same(path: Path, other: str | os.PathLike) -> bool:
    """Whether two paths name the same existing file or folder."""
    other = parse(other)
    if is_bucket(path) != is_bucket(other) or not (path.exists() and other.exists()):
        return False
    return path.samefile(other)


def _problem(text):
    if not isinstance(text, str):
        return "it is not a path"
    if not text.strip():
        return "a path must not be empty"
    if "\0" in text:
        return "a path must not contain NUL bytes"
    if not (scheme := SCHEME.match(text)):
        return None
    if scheme[1] not in buckets.SCHEMES:
        return (
            f"{scheme[1]}:{scheme[2]} is not supported: use a local path, or a path in a bucket "
            "(gs://, s3://)"
        )
    rest = text[scheme.end() :]
    if not rest or set(rest.split("/")) & {".", ".."}:
        return f"a path in a bucket looks like {scheme[1]}://BUCKET/FOLDER"
    if set(rest) & set("*?[]"):
        return "a path in a bucket must not contain * ? [ ], which are wildcards there"
    return None


def check_writable(path: str | os.PathLike, name: str) -> Path:
    """Parses a path and checks that a file can be created or replaced there.

    Its folders need not exist yet.

    Args:
      path: a string or a path.
      name: name of the flag, key or argument that it comes from, for the error message.

    Raises:
      ValueError: if it is a folder, one of its parents is a file, or writing is not permitted.
      BucketError: if the bucket does not exist, or cannot be written to.
    """
    path = parse(path, name)
    if path.is_dir():
        raise ValueError(f"{name}: {path} is a folder, not a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{name}: {path} is not a regular file")
    if isinstance(path, buckets.BucketPath):
        buckets.check(path, writable=True)
        return path
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{name}: {folder} is a file, not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: {folder} cannot be written to")
    return path
