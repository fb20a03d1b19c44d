"""TensorBoard's event files, written where and when they are asked for.

tensorboardX's SummaryWriter leaves that to threads, whose errors, such as a full disk, nobody sees
but as tracebacks.
"""

import time
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from nvae_jax import files

FLUSH_SECONDS = 30.0


class Board:
    """An event file of its own in the folder of a run.

    Args:
      folder: of the run.
      step: where the run resumes; what older files have of later steps is hidden.
    """

    def __init__(self, folder, step=0):
        self._folder, self._flushed = Path(folder), time.monotonic()
        with files.named(self._folder):
            self._events = EventsWriter(str(self._folder / "events"))
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step, values):
        """{name: number} of a step."""
        parts = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=parts))

    def image(self, step, name, image):
        """A uint8 (H, W, 3) image of a step."""
        self._write(step=step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self):
        """Writes what is left."""
        with files.named(self._folder):
            self._events.close()

    def _write(self, **content):
        with files.named(self._folder):
            self._events.write_event(Event(wall_time=time.time(), **content))
            if time.monotonic() > self._flushed + FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()
