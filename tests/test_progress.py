import re
import sys
import time
import types

import jax
import pytest
import tqdm.std

from nvae_jax import progress


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(tqdm.std, "time", clock)
    return clock


def work(clock, steps, seconds):
    with progress.bar("evaluating", unit="image", total=steps) as bar:
        for _ in range(steps):
            clock.seconds += seconds
            bar.update(1)


def test_long_work_prints_lines_when_there_is_no_terminal(clock, capsys):
    work(clock, 10, 20.0)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 5
    assert printed[0] == "evaluating: image 2 of 10, 00:40 so far, 02:40 left"


def test_short_work_prints_nothing(clock, capsys):
    work(clock, 10, 2.0)
    assert capsys.readouterr() == ("", "")


def test_the_items_of_an_iterable_are_counted(clock, capsys):
    for _ in progress.bar("recalibrating", range(3), unit="pass"):
        clock.seconds += 31.0
    assert capsys.readouterr().err.startswith("recalibrating: pass 1 of 3,")


def test_a_terminal_shows_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(clock, 10, 2.0)
    assert "100%|" in capsys.readouterr().err


def test_a_long_call_reports_that_it_is_running(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    with progress.waiting("compiling"):
        lines = ""
        while lines.count("\n") < 2:
            time.sleep(0.01)
            lines += capsys.readouterr().err
    assert all(re.fullmatch(r"compiling: \d+ s so far", line) for line in lines.splitlines())
    capsys.readouterr()
    time.sleep(0.05)  # nothing is printed after the end
    monkeypatch.setattr(progress, "SECONDS", 60.0)
    with progress.waiting("saving"):
        pass
    assert capsys.readouterr() == ("saving ...\n", "")


def test_the_clock_counts_only_training(monkeypatch):
    now = Clock()
    data = types.SimpleNamespace(wait_seconds=0.0)
    monkeypatch.setattr(progress.time, "perf_counter", now)
    laps = progress.Clock(10, data)
    now.seconds += 2.0
    data.wait_seconds += 1.0
    with laps.paused():
        now.seconds += 1000.0
    now.seconds += 2.0
    lap = laps.lap(14, 16)
    assert (lap["images_per_second"], lap["data_wait_fraction"]) == (16.0, 0.25)
    assert (lap["step_seconds"], lap["data_wait_seconds"]) == (1.0, 0.25)
    now.seconds += 8.0
    with laps.paused(), laps.saving():
        now.seconds += 5.0
    assert laps.training_seconds() == 3.0 + 8.0  # of the steps, without waiting
    lap = laps.lap(18, 16)
    assert (lap["images_per_second"], lap["data_wait_fraction"]) == (8.0, 0.0)
    assert lap["checkpoint_seconds"] == 5.0


def test_the_time_of_compilation_is_measured():
    laps = progress.Clock(0, types.SimpleNamespace(wait_seconds=0.0))
    laps.lap(1, 1)
    assert laps.lap(2, 1)["compile_seconds"] == 0
    jax.jit(lambda x: x + 7.125)(1.0).block_until_ready()
    assert laps.lap(3, 1)["compile_seconds"] > 0
