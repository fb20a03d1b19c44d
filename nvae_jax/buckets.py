"""Buckets: paths in gs:// and s3://, whose errors are one line each.

Whatever an object store answers becomes a `BucketError`, an OSError that names the path. Nothing is
remembered of a bucket: other processes write to it.
"""

import contextlib
import functools
import logging
import os
import re
import secrets
import types
from collections.abc import Iterator
from typing import Any

from etils.epath import gpath

from nvae_jax import extras

# Scheme: the extra that its package comes with, the package, and where credentials come from.
SCHEMES = {
    "gs": ("gcs", "gcsfs", "run `gcloud auth application-default login`"),
    "s3": ("s3", "s3fs", "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
}
# TensorFlow, where it is installed, would be asked instead. Both are read at the first use.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks for a bucket's kind


class BucketError(OSError):
    """What a bucket refuses: it is not there, not ours, or out of reach. One line."""


def _translated(method: Any) -> Any:
    @functools.wraps(method)
    def call(self, *args, **options):
        with errors(self):
            return method(self, *args, **options)

    return call


class BucketPath(gpath.PosixGPath):
    """A path in a bucket, with pathlib's methods. Folders are only the beginnings of names: making
    one does nothing, and one without files is not there."""

    unlink = _translated(gpath.PosixGPath.unlink)
    rmtree = _translated(gpath.PosixGPath.rmtree)
    read_bytes = _translated(gpath.PosixGPath.read_bytes)
    read_text = _translated(gpath.PosixGPath.read_text)

    @property
    def system(self) -> Any:
        """The fsspec file system."""
        return _system(self.scheme)

    @property
    def scheme(self) -> str:
        """ "gs" or "s3"."""
        return str(self).partition("://")[0]

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return str(self).partition("://")[2].partition("/")[0]

    @property
    def _backend(self) -> Any:
        _system(self.scheme)  # set up before etils makes its own
        return super()._backend

    def absolute(self) -> "BucketPath":
        """Itself."""
        return self

    def expanduser(self) -> "BucketPath":
        """Itself."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Itself."""
        return self

    def samefile(self, other: Any) -> bool:
        """Whether the other path is this one."""
        return str(self) == str(other)

    @_translated
    def _kind(self):
        """ "file", "directory" or None, of which a bucket that is not there is none."""
        try:
            return self.system.info(str(self))["type"]
        except FileNotFoundError as error:
            if _lacks_bucket(error, self):
                raise
            return None

    def stat(self) -> Any:
        """With `st_size` and `st_mtime`."""
        with errors(self):
            found = super().stat()
        return types.SimpleNamespace(st_size=found.length, st_mtime=found.mtime)

    def exists(self) -> bool:
        """Whether there is an object of this name, or a folder that has some."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects in it."""
        return self._kind() == "directory"

    def iterdir(self) -> Iterator["BucketPath"]:
        """What is in a folder; nothing where there is none."""
        with errors(self):
            found = list(super().iterdir()) if self.is_dir() else []
        # A folder made by hand is an object of its own, with an empty name.
        return iter(path for path in found if str(path) != str(self))

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """The paths in a folder that fit."""
        with errors(self):
            return iter(list(super().glob(pattern)))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing."""

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Makes or empties the object."""
        self.write_bytes(b"")

    def open(self, mode: str = "r", **options: Any) -> Any:
        """Opens for reading or writing. There is no appending to objects."""
        if "a" in mode or "+" in mode:
            raise ValueError(f"{self}: objects in buckets cannot be appended to")
        with errors(self):
            return super().open(mode, **options)

    @_translated
    def write_bytes(self, data: Any) -> int:
        """Makes or replaces the object, at once or not at all."""
        self.system.pipe_file(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        """As `write_bytes`, in UTF-8."""
        return self.write_bytes(data.encode())

    @_translated
    def upload(self, local: str | os.PathLike) -> None:
        """Makes or replaces the object by a file of this machine, at once or not at all."""
        self.system.put_file(os.fspath(local), str(self))

    @_translated
    def create(self, content: bytes) -> None:
        """Makes the object. Raises FileExistsError where there is one: of several processes that
        try, one succeeds."""
        self.system.pipe_file(str(self), content, mode="create")


@functools.cache
def _system(scheme):
    extra, module, _ = SCHEMES[scheme]
    extras.load(module, extra, f"a path in {scheme}://")
    import fsspec

    # Both raise all that they log, and what fsspec remembers of a bucket is not what is there now.
    logging.getLogger(module).addFilter(lambda record: False)
    protocol = {"gs": "gcs"}.get(scheme, scheme)
    fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    options = {"finalize_on_close": True} if scheme == "gs" else {}  # as etils makes it
    return fsspec.filesystem(protocol, **options)


@contextlib.contextmanager
def errors(path: BucketPath) -> Iterator[None]:
    """Makes a `BucketError` of whatever goes wrong, but for what a file system may say too."""
    _system(path.scheme)  # or the line that says what to install
    try:
        yield
    except (BucketError, FileExistsError, IsADirectoryError, NotADirectoryError):
        raise
    except FileNotFoundError as error:
        if not _lacks_bucket(error, path):
            raise FileNotFoundError(2, "there is no such object", str(path)) from error
        raise BucketError(
            f"{path}: there is no bucket {path.scheme}://{path.bucket}: make it first, or name "
            "another"
        ) from error
    except Exception as error:  # each package has its own classes, and those of three others
        raise BucketError(f"{path}: {reason(error, path.scheme)}") from error


def _lacks_bucket(error, path):
    text = str(error)
    return (
        text.endswith(f"b/{path.bucket}/o")  # listing, as gcsfs says it
        or f"upload/storage/v1/b/{path.bucket}/o" in text
        or "bucket does not exist" in text
    )


def reason(error: BaseException, scheme: str = "gs") -> str:
    """Why a bucket cannot be used, in a line."""
    text = " ".join(f"{type(error).__name__} {error}".split())
    said = " ".join(str(error).split())[:200] or type(error).__name__
    if re.search(r"[Cc]redential|Anonymous|\b401\b|(?i:unauth)", text):
        return f"no credentials that it takes: {SCHEMES[scheme][2]} ({said})"
    if re.search(r"Forbidden|PermissionError|PERMISSION_DENIED|Access ?Denied|\b403\b", text):
        return f"no permission ({said})"
    if re.search("[Cc]onnect", text):
        return f"cannot be reached ({said})"
    return said


def check(path: BucketPath, *, writable: bool = False) -> None:
    """Asks a bucket whether it is there and may be used.

    Raises:
      BucketError: it is not, or may not be.
    """
    path.exists()
    if writable:
        probe = path.parent / f".writable_{secrets.token_hex(8)}"
        probe.create(b"")
        probe.unlink()
