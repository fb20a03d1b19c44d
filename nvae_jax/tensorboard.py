"""Writes TensorBoard's event files: `--log=tensorboard`, the default.

It writes them in the calling thread. tensorboardX's SummaryWriter would use other threads, whose
errors, such as a full disk, only appear as tracebacks.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from nvae_jax import extras, files, paths
from nvae_jax.loggers import UPLOAD_SECONDS, Logger

with extras.hidden("torch"):  # tensorboardX would import it, which takes seconds, for nothing
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

FLUSH_SECONDS = 30.0


class TensorBoard(Logger):
    """A logger that writes an event file in the run directory at each start."""

    def start(self, workdir: Path, config: ConfigDict, step: int) -> None:
        """Opens a new file, and marks events of later steps in older files as obsolete."""
        self._synced, self._flushed = files.SyncedFolder(workdir), time.monotonic()
        self._folder = self._synced.folder
        self._seconds = UPLOAD_SECONDS if paths.is_bucket(workdir) else FLUSH_SECONDS
        with files.naming_errors(self._folder):
            self._events = EventsWriter(str(self._folder / "events"))
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def metrics(self, step: int, row: Mapping[str, float]) -> None:
        """Writes {name: number} of a step."""
        parts = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        self._write(step=step, summary=Summary(value=parts))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a uint8 (H, W, 3) image of a step."""
        self._write(step=step, summary=summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Writes buffered events to the file, and uploads it to a bucket."""
        with files.naming_errors(self._folder):
            self._events.flush()
            self._synced.upload()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes buffered events and closes the file."""
        with files.naming_errors(self._folder):
            self._events.close()
            self._synced.close()

    def _write(self, **content):
        with files.naming_errors(self._folder):
            self._events.write_event(Event(wall_time=time.time(), **content))
        if time.monotonic() > self._flushed + self._seconds:
            self.flush()


make = TensorBoard
