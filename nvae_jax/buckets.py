"""Paths in buckets (gs:// and s3://) with one-line errors.

Every error of an object store becomes a `BucketError`, an OSError that names the path. Listings are
not cached, because other processes write to the same bucket.
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

# {scheme: (extra that installs its package, the package, how to get credentials)}
SCHEMES = {
    "gs": ("gcs", "gcsfs", "run `gcloud auth application-default login`"),
    "s3": ("s3", "s3fs", "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
}
# Both variables are read on first use. Without the first, etils would use TensorFlow if installed;
# without the second, gcsfs would send requests for the bucket's type.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")


class BucketError(OSError):
    """A bucket does not exist, denies access or cannot be reached; the message is one line."""


def _with_bucket_errors(method: Any) -> Any:
    """Decorates a method of `BucketPath` so that it raises errors as `errors` does."""

    @functools.wraps(method)
    def call(self, *args, **options):
        with errors(self):
            return method(self, *args, **options)

    return call


class BucketPath(gpath.PosixGPath):
    """A path in a bucket, with the methods of `pathlib.Path`.

    Folders are only prefixes of object names: creating one does nothing, and an empty one does not
    exist.
    """

    unlink = _with_bucket_errors(gpath.PosixGPath.unlink)
    rmtree = _with_bucket_errors(gpath.PosixGPath.rmtree)
    read_bytes = _with_bucket_errors(gpath.PosixGPath.read_bytes)
    read_text = _with_bucket_errors(gpath.PosixGPath.read_text)

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
        _system(self.scheme)  # must be configured before etils creates its own instance
        return super()._backend

    def absolute(self) -> "BucketPath":
        """Returns the path unchanged: paths in buckets are always absolute."""
        return self

    def expanduser(self) -> "BucketPath":
        """Returns the path unchanged."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Returns the path unchanged: buckets have no links."""
        return self

    def samefile(self, other: Any) -> bool:
        """Whether the other path is equal to this one."""
        return str(self) == str(other)

    @_with_bucket_errors
    def _kind(self):
        """Returns "file", "directory" or None; raises an error if there is no such bucket."""
        try:
            return self.system.info(str(self))["type"]
        except FileNotFoundError as error:
            if _lacks_bucket(error, self):
                raise
            return None

    def stat(self) -> Any:
        """Returns the object's size and modification time as `st_size` and `st_mtime`."""
        with errors(self):
            found = super().stat()
        return types.SimpleNamespace(st_size=found.length, st_mtime=found.mtime)

    def exists(self) -> bool:
        """Whether there is an object of this name, or objects in a folder of this name."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects in a folder of this name."""
        return self._kind() == "directory"

    def iterdir(self) -> Iterator["BucketPath"]:
        """Iterates over the objects and folders in a folder; over nothing if it does not exist."""
        with errors(self):
            found = list(super().iterdir()) if self.is_dir() else []
        # A folder created in a web console is itself an object, with an empty name.
        return iter(path for path in found if str(path) != str(self))

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """Iterates over the paths in the folder that match a pattern."""
        with errors(self):
            return iter(list(super().glob(pattern)))

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: buckets have no folders of their own."""

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Creates the object, or replaces it by an empty one."""
        self.write_bytes(b"")

    def open(self, mode: str = "r", **options: Any) -> Any:
        """Opens the object for reading or writing. Raises ValueError for modes that append."""
        if "a" in mode or "+" in mode:
            raise ValueError(f"{self}: objects in buckets cannot be appended to")
        with errors(self):
            return super().open(mode, **options)

    @_with_bucket_errors
    def write_bytes(self, data: Any) -> int:
        """Creates or replaces the object atomically."""
        self.system.pipe_file(str(self), bytes(data))
        return len(data)

    def write_text(self, data: str, *_: Any, **__: Any) -> int:
        """Creates or replaces the object atomically with text in UTF-8."""
        return self.write_bytes(data.encode())

    @_with_bucket_errors
    def upload(self, local: str | os.PathLike) -> None:
        """Creates or replaces the object atomically with the content of a local file."""
        self.system.put_file(os.fspath(local), str(self))

    @_with_bucket_errors
    def create(self, content: bytes) -> None:
        """Creates the object. Raises FileExistsError if it exists; of several processes that try
        at the same time, exactly one succeeds."""
        self.system.pipe_file(str(self), content, mode="create")


@functools.cache
def _system(scheme):
    extra, module, _ = SCHEMES[scheme]
    extras.load(module, extra, f"a path in {scheme}://")
    import fsspec

    # Both packages raise every error that they log. Cached listings would be out of date.
    logging.getLogger(module).addFilter(lambda record: False)
    protocol = {"gs": "gcs"}.get(scheme, scheme)
    fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    options = {"finalize_on_close": True} if scheme == "gs" else {}  # the same options as in etils
    return fsspec.filesystem(protocol, **options)


@contextlib.contextmanager
def errors(path: BucketPath) -> Iterator[None]:
    """A context that turns every error into a `BucketError`, except those of local files too
    (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)."""
    _system(path.scheme)  # raises an error if the scheme's package is not installed
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
    except Exception as error:  # the packages raise classes of their own and of their dependencies
        raise BucketError(f"{path}: {reason(error, path.scheme)}") from error


def _lacks_bucket(error, path):
    text = str(error)
    return (
        text.endswith(f"b/{path.bucket}/o")  # gcsfs's message when listing
        or f"upload/storage/v1/b/{path.bucket}/o" in text
        or "bucket does not exist" in text
    )


def reason(error: BaseException, scheme: str = "gs") -> str:
    """Explains in one line why a bucket cannot be used."""
    text = " ".join(f"{type(error).__name__} {error}".split())
    said = " ".join(str(error).split())[:200] or type(error).__name__
    if re.search(r"[Cc]redential|Anonymous|\b401\b|(?i:unauth)", text):
        return f"no valid credentials: {SCHEMES[scheme][2]} ({said})"
    if re.search(r"Forbidden|PermissionError|PERMISSION_DENIED|Access ?Denied|\b403\b", text):
        return f"no permission ({said})"
    if re.search("[Cc]onnect", text):
        return f"cannot be reached ({said})"
    return said


def check(path: BucketPath, *, writable: bool = False) -> None:
    """Checks that a bucket exists and can be read, and with `writable` that it can be written to.

    Raises:
      BucketError: if it does not exist, or access is denied.
    """
    path.exists()
    if writable:
        probe = path.parent / f".writable_{secrets.token_hex(8)}"
        probe.create(b"")
        probe.unlink()
