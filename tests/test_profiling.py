"""`--profile`: a trace that TensorBoard's Profile tab and xprof read."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from nvae_jax import profiling


def run(workdir, span, start, steps):
    add = jax.jit(lambda x: x + 1)
    value = add(jnp.zeros(3))
    with profiling.Profile(workdir, span, start) as profile:
        for step in range(start + 1, steps + 1):
            with profile.step(step):
                value = add(value)
            profile.end_step(step, value)
    return value


def traced_steps(workdir):
    """The steps that xprof finds in a trace."""
    [path] = workdir.glob("plugins/profile/*/*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    found = {dict(event.stats)["step_num"] for event in events if event.name == "train"}
    [path] = workdir.glob("plugins/profile/*/*.trace.json.gz")
    names = [event.get("name", "") for event in json.loads(gzip.open(path).read())["traceEvents"]]
    assert any(name.startswith("train") for name in names)
    return sorted(found)


def test_the_steps_of_the_given_span_are_traced(tmp_path, capsys):
    run(tmp_path, (2, 3), 0, 5)
    assert traced_steps(tmp_path) == [2, 3]
    assert capsys.readouterr().out.startswith(f"profile written to {tmp_path}")


def test_a_resumed_run_traces_the_remaining_steps_of_the_span(tmp_path, capsys):
    run(tmp_path, (2, 9), 3, 5)  # it ends within the span
    assert traced_steps(tmp_path) == [4, 5]
    run(tmp_path / "later", (2, 9), 9, 12)
    assert not (tmp_path / "later").exists()
    assert "steps 2 to 9 are already done: there is no profile" in capsys.readouterr().out


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / "plugins").write_text("no folder")
    assert float(run(tmp_path, (1, 1), 0, 2)[0]) == 3
    assert "warning: the profile is not saved: " in capsys.readouterr().err


def test_wrong_spans_are_errors():
    assert profiling.parse_span("10:20") == (10, 20) and profiling.parse_span(None) is None
    for wrong in ("10", "20:10", "0:3", "a:b", "1:2:3", ":5", "-1:4"):
        with pytest.raises(ValueError, match=f"--profile={wrong}: it must be START:STOP"):
            profiling.parse_span(wrong)
    with pytest.raises(ValueError, match="--profile=3:9: the run has steps 1 to 8"):
        profiling.check((3, 9), 8)
    profiling.check(None, 8)
