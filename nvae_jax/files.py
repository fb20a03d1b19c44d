"""Files that appear whole or not at all, and locks."""

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Gives the path of a temporary file beside `path`, with the same ending. It takes the place of
    `path` at the end; when an exception leaves the context, it is removed.

    Args:
      path: of a file in a folder that is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp lets nobody else read it
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path, refusal=None):
    """Holds the lock of the file `path`, made where it is missing, against other processes. The
    kernel drops it with the process, however that ends.

    Args:
      refusal: the exception to raise while another process has the lock; None: wait for that one.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise refusal from None
        yield
