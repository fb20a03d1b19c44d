"""Paths as users write them. One that is none is refused here, before anything is written.

Whatever takes a path from a flag, a config or Python asks `local` for it: buckets (through
etils.epath) would come in here.
"""

import os
import re
from pathlib import Path

# Path("gs://bucket") has become gs:/bucket, a local folder: one slash is enough.
SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*:/+)")


def local(path: str | os.PathLike, name: str = "") -> Path:
    """`path` on this machine, where there may be something or nothing; ~ is the user's home.

    Args:
      path: text, or a path.
      name: what the user calls it: a flag, a key or an argument.

    Raises:
      ValueError: it has a scheme (gs://, file:/// ...), is empty, or is no path at all.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if problem := _problem(text):
        raise ValueError(f"{name}={text!r}: {problem}" if name else problem)
    return Path(os.path.expanduser(text))


def _problem(text):
    if not isinstance(text, str):
        return "it is no path"
    if not text.strip():
        return "it is empty, where a path is wanted"
    if "\0" in text:
        return "a path has no NUL bytes"
    if scheme := SCHEME.match(text):
        return (
            f"{scheme[1]} cannot be used: name a path of this machine's file system, "
            "such as a mounted bucket's"
        )
    return None


def check_writable(path: str | os.PathLike, name: str) -> Path:
    """`local(path)`, where a file can be made or replaced, in folders that may have to be made.

    Raises:
      ValueError: it is a folder, something in its way is no folder, or may not be written to.
    """
    path = local(path, name)
    if path.is_dir():
        raise ValueError(f"{name}: {path} is a folder, where a file is to be written")
    if path.exists() and not path.is_file():
        raise ValueError(f"{name}: {path} is no regular file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ValueError(f"{name}: {folder} is a file, where a folder is wanted")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: {folder} cannot be written to")
    return path
