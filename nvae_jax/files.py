"""Atomic writes, checked reads, JSON, and file locks."""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from nvae_jax import paths
from nvae_jax.buckets import BucketPath

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: str | Path) -> None:
    """Raises OSError unless `path` is a regular file.

    Opening a FIFO would wait for a writer, and reading a device can last forever.
    """
    if isinstance(path, BucketPath):
        return  # opening it raises an error
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"is {kind}, not a file", str(path))


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a user's file for reading bytes. Raises OSError unless it is a regular file."""
    check_regular(path)
    if isinstance(path, BucketPath):
        return path.open("rb")
    return open(path, "rb")


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A context that yields a temporary local file, which replaces `path` at its end.

    If an exception leaves the context, the temporary file is removed and `path` stays as it was.
    The temporary file has the same suffix and lies in the same folder, unless `path` is in a
    bucket.

    Args:
      path: the file to write; its folder is created if it does not exist.
    """
    path = paths.parse(path)
    if isinstance(path, BucketPath):
        with _upload_at_end(path) as temporary:
            yield temporary
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    try:
        with naming_errors(path):
            yield Path(name)
        os.chmod(name, 0o644)  # mkstemp creates files that only their owner can read
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _upload_at_end(path):
    """`atomic_write` for a path in a bucket, where an upload is atomic."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, path.name)
        temporary.touch()
        with naming_errors(path):
            yield temporary
        path.upload(temporary)


class SyncedFolder:
    """A folder whose files are appended to, also if it is in a bucket.

    Objects in a bucket cannot be appended to. Files are therefore written to a local folder, and
    `upload` copies those that have changed to the bucket.

    Args:
      folder: a local folder, or a folder in a bucket.

    Attributes:
      folder: the local folder to write to.
    """

    def __init__(self, folder: Path):
        self._bucket = folder if isinstance(folder, BucketPath) else None
        self._temporary = None if self._bucket is None else tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name) if self._temporary else folder
        self._uploaded: dict[str, tuple] = {}

    def fetch(self, name: str) -> Path:
        """Returns the local path of a file, after downloading its content from the bucket."""
        path = self.folder / name
        if self._bucket is not None and (self._bucket / name).is_file():
            path.write_bytes((self._bucket / name).read_bytes())
        return path

    def upload(self) -> None:
        """Copies changed files to the bucket. Does nothing for a local folder."""
        if self._bucket is None:
            return
        for path in sorted(self.folder.iterdir()):
            state = path.stat().st_size, path.stat().st_mtime_ns
            if self._uploaded.get(path.name) != state:
                (self._bucket / path.name).upload(path)
                self._uploaded[path.name] = state

    def close(self) -> None:
        """Uploads changed files and removes the temporary folder."""
        try:
            self.upload()
        finally:
            if self._temporary is not None:
                self._temporary.cleanup()


def remove_tree(path: Path) -> None:
    """Removes a folder and its contents, ignoring errors."""
    with contextlib.suppress(OSError):
        if isinstance(path, BucketPath):
            path.rmtree(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def naming_errors(path: str | Path) -> Iterator[None]:
    """A context that adds `path` to each OSError that does not name a file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def to_json(value: Any, **options: Any) -> str:
    """Converts a value to JSON, with null for NaN and infinity, which JSON does not have.

    Args:
      value: nested dicts, lists and tuples of strings and numbers.
      **options: options of `json.dumps`.
    """
    return json.dumps(nan_to_none(value), allow_nan=False, **options)


def write_json(path: str | Path, value: Any, **options: Any) -> None:
    """Writes a value to a file as indented JSON, atomically; see `to_json`."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(value, indent=2, **options) + "\n")


def nan_to_none(value: Any) -> Any:
    """Replaces NaN and infinity in nested dicts, lists and tuples by None."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def locked(path: str | Path, refusal: Exception | None = None) -> Iterator[None]:
    """A context that holds an exclusive lock on a file.

    The kernel releases the lock when the process ends, in whatever way.

    Args:
      path: the file to lock; it is created if it does not exist.
      refusal: exception to raise if another process holds the lock; None waits for the lock.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            raise refusal or error from None
        yield


def cache_folder() -> Path | None:
    """The folder for cached results, ~/.cache/nvae_jax, or None if the user has no home folder."""
    try:
        return Path.home() / ".cache" / "nvae_jax"
    except RuntimeError:  # HOME is not set, and the user is not in the password database
        return None
