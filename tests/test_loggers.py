"""Loggers of metrics and pictures: files, TensorBoard, Weights & Biases, a user's own."""

import errno
import struct
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from nvae_jax import loggers
from nvae_jax.loggers import Logger, Loggers
from tests.conftest import tiny_config

IMAGES = np.zeros((4, 8, 8, 1), np.float32)


def started(workdir, *others, step=0):
    return Loggers(others).started(workdir, tiny_config(), step)


@dataclass  # and so it cannot be hashed
class Failing(Logger):
    """A logger that fails at the given steps."""

    steps: tuple[int, ...] = ()
    rows: list = field(default_factory=list)

    def metrics(self, step, row):
        if step in self.steps:
            raise RuntimeError("no\nnetwork")
        self.rows.append((step, row))

    def close(self):
        raise OSError("no network")


def test_nan_is_null_in_metrics_jsonl(tmp_path):
    with started(tmp_path) as log:
        log.metrics(1, {"train/loss": float("nan"), "train/kl": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "train/loss": null, "train/kl": 2.0}\n'
    )


def test_rows_after_the_step_of_the_start_are_removed(tmp_path):
    with started(tmp_path) as log:
        for step in (1, 2, 3):
            log.metrics(step, {"train/loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "tra')
    with started(tmp_path, step=2):
        pass
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_row_that_cannot_be_written_is_an_error_with_its_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loggers.files, "to_json", full)
    with pytest.raises(OSError, match="No space left on device: .*metrics.jsonl"):
        with started(tmp_path) as log:
            log.metrics(1, {"train/loss": 1.0})


def test_consecutive_failures_of_a_logger_give_one_warning(tmp_path, capsys):
    failing, fine = Failing((2, 3, 5)), Failing()
    with started(tmp_path, failing, fine) as log:
        for step in range(1, 7):
            log.metrics(step, {"train/loss": 1.0})
    lines = capsys.readouterr().err.splitlines()
    said = "warning: the logger Failing.metrics of step {} failed, training continues: RuntimeError"
    assert lines[:2] == [f"{said.format(step)}: no network" for step in (2, 5)]
    assert len(lines) == 4 and all("Failing.close failed" in line for line in lines[2:])
    assert [step for step, _ in failing.rows] == [1, 4, 6] and len(fine.rows) == 6
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 6


def test_a_logger_that_cannot_start_ends_the_run_before_its_first_step(tmp_path):
    closed = []

    class Offline(Logger):
        def start(self, workdir, config, step):
            raise RuntimeError("no\nserver")

    class Good(Logger):
        def close(self):
            closed.append(self)

    with pytest.raises(ValueError, match="the logger Offline cannot start: .*: no server"):
        with started(tmp_path, Good(), Offline()):
            raise AssertionError
    assert closed


def test_only_the_first_process_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.processes, "is_primary", lambda: False)
    logger = Failing()
    with started(tmp_path, logger) as log:
        log.metrics(1, {"train/loss": 1.0})
        log.images(1, "samples", IMAGES)
    assert not logger.rows and not list(tmp_path.iterdir())


def test_loggers_are_found_by_name_once_each():
    (logger,) = loggers.by_name(["tensorboard", "tensorboard", ""])
    assert type(logger).__name__ == "TensorBoard"
    with pytest.raises(ValueError, match="unknown logger 'tensorbord'; known: tensorboard, wandb"):
        loggers.by_name(["tensorbord"])


def test_a_wrong_logger_is_refused_before_anything_is_written(commands, tmp_path):
    flags = ["--config=digits", f"--workdir={tmp_path / 'run'}", "--log=tensorboard,nowhere"]
    done = commands.run("train", *flags)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr == "error: unknown logger 'nowhere'; known: tensorboard, wandb\n"


def test_event_files_have_the_records_of_tensorboard(tmp_path):
    with started(tmp_path, *loggers.by_name(["tensorboard"]), step=4) as log:
        log.metrics(5, {"train/loss": float("nan"), "train/kl": 2.0})
        log.images(5, "samples", IMAGES)
    (file,) = tmp_path.glob("events.out.tfevents.*")
    events = list(records(file.read_bytes()))
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (5, SessionLog.START)
    values = {value.tag: value for event in events for value in event.summary.value}
    assert values["train/kl"].simple_value == 2.0
    assert values["samples"].image.width == 18


def records(data):
    """The events of a file; each is stored as length, checksum, event, checksum."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


@pytest.fixture
def fake_wandb(monkeypatch):
    """A stand-in for wandb that stores what it is given."""
    fake = ModuleType("wandb")
    fake.runs, fake.Image = [], lambda image: image.shape

    def init(**options):
        run = SimpleNamespace(id=options["id"] or f"id{len(fake.runs)}", options=options, rows=[])
        run.log, run.define_metric = run.rows.append, lambda *_, **__: None
        run.finish = lambda: run.rows.append("finished")
        fake.runs.append(run)
        return run

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def log_to_wandb(workdir, step):
    with started(workdir, *loggers.by_name(["wandb"]), step=step) as log:
        log.metrics(step + 1, {"train/loss": 1.0})
        log.images(step + 1, "samples", IMAGES)


def test_weights_and_biases_gets_everything_and_continues_a_resumed_run(tmp_path, fake_wandb):
    for step in (0, 1, 0):  # started, resumed, and started anew
        log_to_wandb(tmp_path, step)
    first, resumed, anew = fake_wandb.runs
    assert first.rows == [
        {"step": 1, "train/loss": 1.0},
        {"step": 1, "samples": (18, 18, 3)},
        "finished",
    ]
    assert first.options["config"] == tiny_config().to_dict()
    assert first.options["name"] == tmp_path.name
    assert first.id == resumed.id != anew.id and resumed.options["resume"] == "allow"


def test_the_real_weights_and_biases_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'nvae_jax[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (0, 1):
        log_to_wandb(tmp_path, step)
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    (name,) = {next(folder.glob("run-*.wandb")).name for folder in folders}
    assert name == f"run-{(tmp_path / 'wandb' / 'run_id.txt').read_text()}.wandb"
    for folder in folders:
        assert b"train/loss" in (folder / name).read_bytes()
        assert list(folder.glob("files/media/images/samples*.png"))
