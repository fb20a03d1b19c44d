"""The checks of the long run: they report memory that grows, processes that do not end, and rows
that differ. CI makes the run itself."""

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Stands in for training: writes rows, and leaks so much memory and so many files.
TRAIN = """
import json, pathlib, sys, time
run, memory, files = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
run.mkdir(parents=True)
kept = []
with open(run / "metrics.jsonl", "a") as rows:
    for step in range(1, 61):
        kept += [bytearray(memory), *(open(sys.executable) for _ in range(files))]
        print(json.dumps({"step": step, "train/loss": 1.0}), file=rows, flush=True)
        time.sleep(0.03)
"""


@pytest.fixture(scope="module")
def scripts():
    """The modules of the script's folder, imported as the script imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("soak_kills", "soak_run", "soak_steps")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.mark.parametrize(
    ("memory", "files", "failed"), [(0, 0, ""), (2**20, 0, "memory grew"), (0, 1, "files grew")]
)
def test_growing_memory_and_open_files_are_reported(
    scripts, monkeypatch, tmp_path, memory, files, failed
):
    program = [sys.executable, "-c", TRAIN]
    monkeypatch.setattr(
        scripts.soak_steps, "command", lambda run, *_: [*program, str(run), str(memory), str(files)]
    )
    samples, summary = scripts.soak_steps.soak_steps(tmp_path, 60, 0.02)
    assert [text.split(" from")[0] for text in summary["failed"]] == [failed] * bool(failed)
    assert samples[-1]["step"] > 50
    scripts.soak_steps.draw(samples, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().count("<svg") == 1


def test_memory_and_open_files_of_a_process_are_read(scripts, tmp_path):
    before = scripts.soak_steps.look(os.getpid())
    with open(tmp_path / "file", "w"):
        now = scripts.soak_steps.look(os.getpid())
    assert now["files"] == before["files"] + 1 and now["memory"] > 10 * 2**20
    assert scripts.soak_steps.look(2**30) is None


def test_a_process_that_does_not_end_is_reported(scripts, monkeypatch, tmp_path):
    """One of two processes is killed; the other ends as it should, with another error, too late, or
    never."""
    for name, seconds in (("MARGIN", 0), ("SLACK", 0), ("TIMEOUT", 3), ("START_TIMEOUT", 8)):
        monkeypatch.setattr(scripts.soak_kills, name, seconds)
    wait = "import os, sys, time; print('waiting up to 8 s', file=sys.stderr, flush=True);"
    wait += "time.sleep(60 if os.environ['JAX_PROCESS_ID'] == '1'"
    gone = "error: another process of the cluster is gone: "
    joining = gone + "distributed.start_timeout"
    end = "; print('{}', file=sys.stderr, flush=True); os._exit(134)"
    for body, line, failed in (
        (" else 0.1)" + end.format(gone), gone, []),
        (" else 3.5)" + end.format(joining), joining, []),
        (" else 3.5)" + end.format(gone), gone, ["did not end within 3 s"]),
        (" else 0.1)" + end.format("error: no"), "error: no", ["ended without its line"]),
        (" else 0.1)", "waiting up to 8 s", ["ended with status 0", "ended without its line"]),
        (" else 60)", "waiting up to 8 s", ["did not end within 3 s"]),
    ):
        program = [sys.executable, "-c", wait + body]
        monkeypatch.setattr(scripts.soak_kills, "command", lambda *_, program=program: program)
        with scripts.soak_kills.Cluster(tmp_path / "run") as cluster:
            row = cluster.kill(1)
        assert row["killed"] == 1 and row["last_line"] == line
        assert row["failed"] == [f"process 0 {what}" for what in failed]
        assert all(process.poll() is not None for process in cluster.processes)


def test_an_interrupted_series_of_kills_is_continued(scripts, monkeypatch, tmp_path):
    calls, kills = [], scripts.soak_kills

    def kill(_run, whiles, _chance):
        calls.append(whiles)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"while": whiles, "killed": 0, "failed": [], "last_line": ""}

    monkeypatch.setattr(kills, "_kill", kill)
    monkeypatch.setattr(kills, "_train_past", lambda *_, keep: {"while": "end", "failed": []})
    monkeypatch.setattr(kills, "_compare", lambda *_: ({}, []))
    with pytest.raises(KeyboardInterrupt):
        kills.soak_kills(tmp_path, 5, 0)
    found, summary = kills.soak_kills(tmp_path, 5, 0)
    assert calls == [*["training"] * 4, "starting", "training", "saving"]
    assert [row.get("kill") for row in found] == [1, 2, 3, 4, 4, 5, None, None]
    assert summary["kills"] == 6 and not summary["failed"]


def test_rows_that_differ_in_computed_values_are_reported(scripts, tmp_path):
    """Only computed values are compared, not speeds. A line that was cut in two by a kill is
    ignored."""
    lines = '{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 3.0}\n{"step": 3, "train/lo'
    (tmp_path / "metrics.jsonl").write_text(lines)
    one = scripts.soak_run.rows(tmp_path)
    assert list(one) == [1, 2] and scripts.soak_run.last_step(tmp_path) == 2
    faster = {step: {**row, "train/images_per_second": 5.0} for step, row in one.items()}
    assert not scripts.soak_kills.differing_steps(one, faster)
    faster[2]["train/loss"] += 1e-7
    assert scripts.soak_kills.differing_steps(one, faster) == [2]
