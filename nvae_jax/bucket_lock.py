"""Locks a folder in a bucket for one writer, and takes over locks that a dead process left behind.

Each lock is an object whose name is a number; the highest number is the valid lock. If several
processes try to create the next number, the object store lets exactly one of them succeed. The
owner rewrites its object every few seconds as a heartbeat. Another process decides whether the
owner is alive by watching for that heartbeat, which needs no common clock; on the owner's own
machine it looks for the process instead. An owner that was suspended for long and then finds a
higher number exits at once, because another process has taken over the folder.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvae_jax import distributed, files
from nvae_jax.buckets import BucketError, BucketPath

HEARTBEAT_SECONDS = 10.0
EXPIRY_SECONDS = 45.0  # a lock without a heartbeat for so long counts as left behind


@contextlib.contextmanager
def locked(folder: BucketPath, refusal: str) -> Iterator[None]:
    """A context that holds the lock stored in `folder`.

    If another host owns the lock, waits up to `EXPIRY_SECONDS` to see whether its owner is alive.

    Args:
      folder: folder in a bucket that contains nothing but the lock.
      refusal: start of the error message if another process owns the lock.

    Raises:
      ValueError: if another process owns the lock.
      BucketError: if the bucket cannot be written to.
    """
    lock = _Lock(folder, _acquire(folder, refusal))
    with lock.sending_heartbeats():
        yield


def _acquire(folder, refusal):
    """Creates a lock and returns its number."""
    numbers = _numbers(folder)
    if numbers:
        owner = _read(folder, numbers[-1])
        if _is_alive(folder, numbers[-1], owner):
            raise ValueError(f"{refusal} (process {_describe(owner)})")
    number = max(numbers, default=0) + 1
    try:
        (folder / str(number)).create(_content(0))
    except FileExistsError:
        raise ValueError(f"{refusal} (process {_describe(_read(folder, number))})") from None
    for old in numbers:
        (folder / str(old)).unlink(missing_ok=True)
    return number


class _Lock:
    def __init__(self, folder, number):
        self._folder, self._number, self._ended = folder, number, threading.Event()

    @contextlib.contextmanager
    def sending_heartbeats(self):
        thread = threading.Thread(target=self._send_heartbeats, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            with contextlib.suppress(BucketError):
                self._write(0, released=True)

    def _send_heartbeats(self):
        count = 0
        while not self._ended.wait(HEARTBEAT_SECONDS):
            count += 1
            # If the bucket cannot be reached, saving a checkpoint reports that.
            with contextlib.suppress(OSError):
                self._exit_if_lost()
                self._write(count)

    def _exit_if_lost(self):
        if max(_numbers(self._folder), default=0) > self._number:
            print(
                f"error: {self._folder.parent}: another process took over this run, which had "
                f"shown no sign of life for {EXPIRY_SECONDS:.0f} s: exiting without writing",
                file=sys.stderr,
                flush=True,
            )
            distributed.exit_without_waiting(2)

    def _write(self, heartbeats, **more):
        (self._folder / str(self._number)).write_bytes(_content(heartbeats, **more))


def _numbers(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _read(folder, number) -> dict[str, Any]:
    try:
        content = json.loads((folder / str(number)).read_bytes())
    except (FileNotFoundError, ValueError):  # removed meanwhile, or truncated
        return {}
    return content if isinstance(content, dict) else {}


def _content(heartbeats, **more):
    return files.to_json({**_this_process(), "beats": heartbeats, **more}).encode()


def _is_alive(folder, number, owner):
    """Whether the process that owns a lock is running and has not released it."""
    if owner.get("released"):
        return False
    if owner.get("machine") == _machine() is not None:
        return _start_time(owner.get("pid")) == owner.get("started")
    print(
        f"{folder.parent} was last written by process {_describe(owner)}: waiting up to "
        f"{EXPIRY_SECONDS:.0f} s to see whether it is alive",
        file=sys.stderr,
        flush=True,
    )
    end = time.monotonic() + EXPIRY_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, HEARTBEAT_SECONDS))
        now = _read(folder, number)
        if not now or now.get("released"):
            return False
        if now != owner:
            return True
    return False


def _describe(owner):
    return f"{owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"


def _this_process():
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "started": _start_time(pid),
    }


def _machine():
    """An id of this machine's current boot and of this container, or None if it is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_time(pid):
    """When a process of this machine started, in clock ticks since boot; None if there is none."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, TypeError, ValueError, IndexError):
        return None
