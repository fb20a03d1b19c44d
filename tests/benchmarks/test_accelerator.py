"""The script that measures programs on an accelerator: it survives failures and parses variants."""

import importlib
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    """The modules of the script's folder, imported as the script imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("kernel_times", "machine", "programs", "side_by_side", "variants")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def results(scripts, tmp_path):
    return scripts.side_by_side.Results(str(tmp_path / "out.json"), minutes=1)


def program(scripts, name, compile_=lambda options: "compiled", measure=lambda _: {"ms": 1.0}):
    """Makes a `Program` that needs no device."""
    memory = SimpleNamespace(memory_analysis=lambda: None)

    def compiled(options):
        compile_(options)
        return memory

    def lower():
        return SimpleNamespace(compile=compiled)

    return scripts.side_by_side.Program({"what": "step", "name": name}, lower, measure)


def rows(tmp_path):
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["device"] and content["settings"] == {"minutes": 1}
    return {row["name"]: row for row in content["results"]}


def fail(*_):
    raise RuntimeError("out of memory\nand more")


def test_a_program_that_fails_does_not_stop_the_others(scripts, results, tmp_path):
    runner = scripts.side_by_side.Runner(results, time.monotonic() + 100)
    bad_lowering = scripts.side_by_side.Program({"what": "step", "name": "bad"}, fail, fail)
    runner.run(
        [
            bad_lowering,
            program(scripts, "uncompiled", compile_=fail),
            program(scripts, "unmeasured", measure=fail),
            program(scripts, "good"),
        ]
    )
    found = rows(tmp_path)
    for name in ("bad", "uncompiled", "unmeasured"):
        assert found[name]["problem"] == "RuntimeError: out of memory", name
    assert found["good"]["ms"] == 1.0 and found["good"]["compiled_together"] == 3


def test_a_program_that_takes_too_long_is_reported_and_the_others_are_measured(
    scripts, results, tmp_path
):
    late = threading.Event()
    # The shortest wait is one second.
    runner = scripts.side_by_side.Runner(results, time.monotonic() + scripts.side_by_side.TO_RUN)
    runner.run([program(scripts, "late", lambda _: late.wait(30)), program(scripts, "good")])
    late.set()
    found = rows(tmp_path)
    assert found["late"]["problem"] == "not compiled in the available time"
    assert found["good"]["ms"] == 1.0 and found["good"]["ran_beside_compilations"] == 1


def test_nothing_is_measured_beside_a_compilation_that_ends_in_time(scripts, results, tmp_path):
    deadline = time.monotonic() + scripts.side_by_side.TO_RUN + 30
    runner = scripts.side_by_side.Runner(results, deadline)
    release = threading.Event()
    threading.Timer(1.5, release.set).start()
    slow = [program(scripts, f"slow {n}", lambda _: release.wait(30)) for n in range(3)]
    # More than are compiled at once, so that some have not begun when the time for them is over.
    late = [program(scripts, f"late {n}") for n in range(3)]
    runner.run([*slow, *late], later=29.5)
    found = rows(tmp_path)
    for one in slow:
        assert found[one.row["name"]]["ms"] == 1.0
        assert "ran_beside_compilations" not in found[one.row["name"]]
    for one in late:
        assert found[one.row["name"]]["problem"] == "not compiled in the available time"


def test_every_result_is_written_at_once(scripts, results, tmp_path):
    seen = []

    def measure(_):
        seen.append(rows(tmp_path))
        return {"ms": 2.0}

    runner = scripts.side_by_side.Runner(results, time.monotonic() + 100)
    runner.run([program(scripts, "first"), program(scripts, "second", measure=measure)])
    assert seen[0]["first"]["ms"] == 1.0 and "compile_s" in seen[0]["second"]


def test_variants_of_a_program_are_parsed(scripts):
    parse = scripts.variants.parse
    text = "a:config=cifar10,model.unroll=5,train.ema_decay=0.5,xla_gpu_x=A,B,xla_gpu_y=false"
    found = parse(text, {"model.remat": "cell"}, None)
    assert (found.name, found.config, found.batch) == ("a", "cifar10", 32)
    expected = {"model.remat": "cell", "model.unroll": 5, "train.ema_decay": 0.5}
    assert found.changes == expected
    assert found.options == {"xla_gpu_x": "A,B", "xla_gpu_y": False}
    base = parse("base", {}, None)
    assert (base.config, base.batch, base.changes, base.options) == ("mnist", 200, {}, {})
    with pytest.raises(ValueError, match="no config has the key 'model.x'"):
        parse("a:model.x=1", {}, None)
    with pytest.raises(ValueError, match="'unroll' is not KEY=VALUE"):
        parse("a:unroll", {}, None)


def test_times_of_kernels_of_the_same_name_are_added(scripts):
    def line(name, *events):
        return SimpleNamespace(
            name=name, events=[SimpleNamespace(name=n, duration_ns=t) for n, t in events]
        )

    events = line("any", ("fusion_1", 3e6), ("fusion_23", 1e6), ("gemm", 6e6))
    planes = [
        SimpleNamespace(name="/host:CPU", lines=[events]),
        SimpleNamespace(name="/elsewhere", lines=[events]),
    ]
    found = scripts.kernel_times.summary(SimpleNamespace(planes=planes), calls=2)
    assert (found["kernels"], found["busy_ms"]) == (2, 5.0)
    gemm, fusion = found["largest_kernels"]
    assert gemm == {"kernel": "gemm", "share": 0.6, "ms": 3.0, "count": 0.5}
    assert fusion == {"kernel": "fusion", "share": 0.4, "ms": 2.0, "count": 1.0}


def test_generated_arrays_are_finite_and_varied(scripts):
    shapes = {"params": np.zeros((30, 70), np.float32), "var": np.zeros(5, np.float32)}
    shapes = scripts.programs.jax.eval_shape(lambda: shapes)
    found = scripts.programs.filled(shapes)
    assert abs(float(found["params"].mean())) < 0.01 < float(found["params"].std())
    assert float(found["var"].min()) >= 0
