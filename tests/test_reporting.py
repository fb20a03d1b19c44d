import errno
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from nvae_jax import reporting


def test_a_row_of_nan_is_json(tmp_path):
    with reporting.MetricWriter(tmp_path) as writer:
        writer.scalars(1, {"train/loss": float("nan"), "train/kl": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "train/loss": null, "train/kl": 2.0}\n'
    )


def test_rows_after_the_step_are_dropped(tmp_path):
    with reporting.MetricWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"train/loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "tra')
    with reporting.MetricWriter(tmp_path, step=2):
        pass
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_row_that_cannot_be_written_names_its_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reporting.files, "to_json", full)
    with pytest.raises(OSError, match="No space left on device: .*metrics.jsonl"):
        with reporting.MetricWriter(tmp_path) as writer:
            writer.scalars(1, {"train/loss": 1.0})


def test_tensorboard_reads_what_is_written(tmp_path):
    with reporting.MetricWriter(tmp_path, step=4) as writer:
        writer.scalars(5, {"train/loss": float("nan"), "train/kl": 2.0})
        writer.images(5, "samples", np.zeros((4, 8, 8, 1), np.float32))
    (file,) = tmp_path.glob("events.out.tfevents.*")
    events = list(records(file.read_bytes()))
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (5, SessionLog.START)
    values = {value.tag: value for event in events for value in event.summary.value}
    assert values["train/kl"].simple_value == 2.0
    assert values["samples"].image.width == 18


def records(data):
    """The events of a file: length, its checksum, event, its checksum."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
