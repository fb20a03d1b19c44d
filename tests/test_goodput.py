"""Goodput: the share of wall time that is spent in training steps, over restarts."""

import json
import time

import pytest

from nvae_jax import goodput
from nvae_jax.goodput import END, START, Goodput


@pytest.fixture
def clocks(monkeypatch):
    """The seconds of `time.time` and `time.monotonic`, as a dict that tests change."""
    now = {"time": 1e9, "monotonic": 50.0}
    monkeypatch.setattr(time, "time", lambda: now["time"])
    monkeypatch.setattr(time, "monotonic", lambda: now["monotonic"])
    return now


def wait(clocks, seconds):
    for name in clocks:
        clocks[name] += seconds


def log(workdir, step, seconds):
    """Adds a row of metrics, in which a step takes 6 s, including 1 s of waiting."""
    row = {"step": step, "train/training_seconds": seconds}
    row |= {"train/step_seconds": 6.0, "train/data_wait_seconds": 1.0}
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def test_goodput_includes_the_time_between_starts_but_not_after_the_end(tmp_path, clocks, capsys):
    first = Goodput(tmp_path, 0, since=50.0)
    wait(clocks, 100)
    assert first(60.0) == pytest.approx(0.6)
    wait(clocks, 100)  # killed, and started again 100 s later; 50 s of steps had been saved
    log(tmp_path, 3, 40.0)
    second = Goodput(tmp_path, 5, since=clocks["monotonic"])
    assert second.training_seconds == 50.0
    wait(clocks, 50)
    assert second(100.0) == pytest.approx(100 / 250)
    second.end(10)
    wait(clocks, 10_000)  # finished; extended later
    log(tmp_path, 10, 100.0)
    third = Goodput(tmp_path, 10, since=clocks["monotonic"])
    assert third(100.0) == pytest.approx(100 / 250)
    rows = [json.loads(line) for line in (tmp_path / goodput.STARTS).read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in rows] == [
        (START, 0),
        (START, 5),
        (END, 10),
        (START, 10),
    ]
    assert capsys.readouterr() == ("", "")


def test_a_clock_that_goes_back_is_reported_and_counts_as_no_time(tmp_path, clocks, capsys):
    Goodput(tmp_path, 0, since=50.0)
    with open(tmp_path / goodput.STARTS, "a") as file:
        file.write("half a li")
    wait(clocks, 100)
    clocks["time"] -= 3700  # of another host
    log(tmp_path, 5, 80.0)
    after = Goodput(tmp_path, 5, since=clocks["monotonic"])
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "is at least 3600 s behind that of" in line
    assert after(80.0) == 1.0  # not more than 1
    wait(clocks, 20)
    assert after(90.0) == pytest.approx(0.9)
