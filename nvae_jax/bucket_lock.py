"""The lock of a folder in a bucket: one writer, and no waiting for a lock that was left behind.

Locks are numbered objects; the highest is the valid one. Of several processes that want the next
number one makes it, as an object store lets one process make an object. The holder rewrites its own
every few seconds. Whoever comes later watches whether that goes on, which needs no clock that hosts
share; on the holder's own machine it asks for the process instead. A holder that was held up for
long and finds a higher number ends at once: the folder is another's.
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

BEAT_SECONDS = 10.0
PATIENCE_SECONDS = 45.0  # without a beat, after which a lock counts as left behind


@contextlib.contextmanager
def held(folder: BucketPath, refusal: str) -> Iterator[None]:
    """Holds the lock that is kept in `folder`; waits to see whether that of another host lives.

    Args:
      refusal: what another process does there, for the message.

    Raises:
      ValueError: another process holds it.
      BucketError: the bucket may not be written to.
    """
    lock = _Lock(folder, _take(folder, refusal))
    with lock.beating():
        yield


def _take(folder, refusal):
    """The number of the new lock."""
    numbers = _numbers(folder)
    if numbers:
        holder = _read(folder, numbers[-1])
        if _is_alive(folder, numbers[-1], holder):
            raise ValueError(f"{refusal} (process {_name(holder)})")
    number = max(numbers, default=0) + 1
    try:
        (folder / str(number)).create(_content(0))
    except FileExistsError:
        raise ValueError(f"{refusal} (process {_name(_read(folder, number))})") from None
    for old in numbers:
        (folder / str(old)).unlink(missing_ok=True)
    return number


class _Lock:
    def __init__(self, folder, number):
        self._folder, self._number, self._ended = folder, number, threading.Event()

    @contextlib.contextmanager
    def beating(self):
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            with contextlib.suppress(BucketError):
                self._write(0, released=True)

    def _beat(self):
        beats = 0
        while not self._ended.wait(BEAT_SECONDS):
            beats += 1
            with contextlib.suppress(OSError):  # a bucket out of reach ends the run elsewhere
                self._check()
                self._write(beats)

    def _check(self):
        if max(_numbers(self._folder), default=0) > self._number:
            print(
                f"error: {self._folder.parent}: another process took over this run, which had "
                f"shown no sign of life for {PATIENCE_SECONDS:.0f} s: ended, to write nothing",
                file=sys.stderr,
                flush=True,
            )
            distributed.exit_without_waiting(2)

    def _write(self, beats, **more):
        (self._folder / str(self._number)).write_bytes(_content(beats, **more))


def _numbers(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _read(folder, number) -> dict[str, Any]:
    try:
        content = json.loads((folder / str(number)).read_bytes())
    except (FileNotFoundError, ValueError):  # removed since, or cut short
        return {}
    return content if isinstance(content, dict) else {}


def _content(beats, **more):
    return files.to_json({**_here(), "beats": beats, **more}).encode()


def _is_alive(folder, number, holder):
    if holder.get("released"):
        return False
    if holder.get("machine") == _machine() is not None:
        return _started(holder.get("pid")) == holder.get("started")
    print(
        f"{folder.parent} was last written by process {_name(holder)}: waiting up to "
        f"{PATIENCE_SECONDS:.0f} s to see whether it lives",
        file=sys.stderr,
        flush=True,
    )
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT_SECONDS))
        now = _read(folder, number)
        if not now or now.get("released"):
            return False
        if now != holder:
            return True
    return False


def _name(holder):
    return f"{holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"


def _here():
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": pid,
        "started": _started(pid),
    }


def _machine():
    """What tells this machine, since it was started, and this container from others; None where
    that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid):
    """When a process of this machine was started, in clock ticks; None where there is none."""
    try:
        return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, TypeError, ValueError, IndexError):
        return None
