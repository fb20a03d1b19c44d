"""TensorBoard's event files, written where and when they are asked for.

tensorboardX's SummaryWriter leaves that to threads, whose errors, such as a full disk, nobody sees
but as tracebacks.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from nvae_jax import extras, files, paths
from nvae_jax.loggers import UPLOAD_SECONDS, Logger

with extras.hidden("torch"):  # which takes seconds to import, and none of it is used here
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

FLUSH_SECONDS = 30.0


class TensorBoard(Logger):
    """An event file of its own in the folder of a run."""

    def start(self, workdir: Path, config: ConfigDict, step: int) -> None:
        """Opens the file; what older files have of steps after `step` is hidden."""
        self._outbox, self._flushed = files.Outbox(workdir), time.monotonic()
        self._folder = self._outbox.folder
        self._seconds = UPLOAD_SECONDS if paths.is_bucket(workdir) else FLUSH_SECONDS
        with files.errors_naming(self._folder):
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
        """Writes what has been kept back until now."""
        with files.errors_naming(self._folder):
            self._events.flush()
            self._outbox.upload()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left."""
        with files.errors_naming(self._folder):
            self._events.close()
            self._outbox.close()

    def _write(self, **content):
        with files.errors_naming(self._folder):
            self._events.write_event(Event(wall_time=time.time(), **content))
        if time.monotonic() > self._flushed + self._seconds:
            self.flush()


make = TensorBoard
