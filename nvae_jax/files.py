"""Files that appear whole or not at all, files from elsewhere, JSON, and locks."""

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
    """Raises OSError unless `path` is a file with content of its own. Opening a FIFO would wait for
    somebody who writes to it, and reading a device may not end."""
    if isinstance(path, BucketPath):
        return  # opening it says what is wrong
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"is {kind}, where a file is wanted", str(path))


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file from elsewhere for reading bytes. Raises OSError as `check_regular` does."""
    check_regular(path)
    if isinstance(path, BucketPath):
        return path.open("rb")
    return open(path, "rb")


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Gives the path of a temporary file of this machine, with the same ending, beside `path`
    unless that is in a bucket. It takes the place of `path` at the end; when an exception leaves
    the context, it is removed.

    Args:
      path: of a file in a folder that is made where it is missing.
    """
    path = paths.parse(path)
    if isinstance(path, BucketPath):
        with _uploaded(path) as temporary:
            yield temporary
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    try:
        with errors_naming(path):
            yield Path(name)
        os.chmod(name, 0o644)  # mkstemp lets nobody else read it
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def _uploaded(path):
    """As `atomic_write`; an object appears whole as it is."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, path.name)
        temporary.touch()
        with errors_naming(path):
            yield temporary
        path.upload(temporary)


class Outbox:
    """Where files of a folder grow. In a bucket nothing can be appended to: there they grow in a
    folder of this machine, and `upload` copies those that have grown.

    Attributes:
      folder: to write in.
    """

    def __init__(self, folder: Path):
        self._bucket = folder if isinstance(folder, BucketPath) else None
        self._own = None if self._bucket is None else tempfile.TemporaryDirectory()
        self.folder = Path(self._own.name) if self._own else folder
        self._uploaded: dict[str, tuple] = {}

    def fetch(self, name: str) -> Path:
        """The path of a file in `folder`, with what it has had until now."""
        path = self.folder / name
        if self._bucket is not None and (self._bucket / name).is_file():
            path.write_bytes((self._bucket / name).read_bytes())
        return path

    def upload(self) -> None:
        """Copies what has changed; does nothing for a folder of this machine."""
        if self._bucket is None:
            return
        for path in sorted(self.folder.iterdir()):
            state = path.stat().st_size, path.stat().st_mtime_ns
            if self._uploaded.get(path.name) != state:
                (self._bucket / path.name).upload(path)
                self._uploaded[path.name] = state

    def close(self) -> None:
        """Uploads for the last time."""
        try:
            self.upload()
        finally:
            if self._own is not None:
                self._own.cleanup()


def remove_tree(path: Path) -> None:
    """Removes a folder and all in it, as far as that goes."""
    with contextlib.suppress(OSError):
        if isinstance(path, BucketPath):
            path.rmtree(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def errors_naming(path: str | Path) -> Iterator[None]:
    """Gives errors of reading and writing, which do not say where, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def to_json(value: Any, **options: Any) -> str:
    """`value` as JSON, which has no NaN and no infinity: they become null.

    Args:
      value: of dicts, lists, tuples, strings and numbers.
      **options: of `json.dumps`.
    """
    return json.dumps(nan_to_none(value), allow_nan=False, **options)


def write_json(path: str | Path, value: Any, **options: Any) -> None:
    """Writes `value` to a file, indented, at once or not at all; see `to_json`."""
    with atomic_write(path) as temporary:
        temporary.write_text(to_json(value, indent=2, **options) + "\n")


def nan_to_none(value: Any) -> Any:
    """`value`, made of dicts, lists and numbers, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def locked(path: str | Path, refusal: Exception | None = None) -> Iterator[None]:
    """Holds the lock of the file `path`, made where it is missing, against other processes. The
    kernel drops it with the process, however that ends.

    Args:
      refusal: the exception to raise while another process has the lock; None: wait for that one.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            raise refusal or error from None
        yield


def cache_folder() -> Path | None:
    """Where what is computed once is kept, or None where the user has no home folder."""
    try:
        return Path.home() / ".cache" / "nvae_jax"
    except RuntimeError:  # HOME is not set, and the system does not know the user
        return None
