"""A sample of the invalid calls; `python -m tests.fuzz` makes them all."""

import random

import pytest

from tests.fuzz import cases, judge, world
from tests.fuzz.case import CALLS, REFUSED, call
from tests.fuzz.script_cases import SCRIPT_CALLS

COUNT = 40


@pytest.fixture(scope="module")
def one(compilation_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    world.make(folder / "world")
    with judge.Judge(folder / "world", folder) as one:
        yield one


@pytest.fixture(scope="module")
def known(commands):
    shown = {command: commands.run(command, "--help").stdout for command in CALLS}
    flags = {command: judge.parse_help(text) for command, text in shown.items()}
    return cases.every(flags, {script: judge.options_of(script) for script in SCRIPT_CALLS})


def test_invalid_calls_are_one_line_errors_and_change_no_file(one, known):
    refused = [case for case in known.values() if case.statuses == REFUSED]
    cheap = [case for case in refused if "bomb" not in case.what]
    faults = []
    for case in random.Random(0).sample(cheap, COUNT):
        found, _, _ = one.judge(case)
        faults += [f"{case}\n    {kind}: {what}" for kind, what in found]
    assert not faults, "\n".join(faults)


def test_every_command_has_invalid_calls(known):
    assert len(known) > 3000
    assert {case.command for case in known.values()} >= {*CALLS, *SCRIPT_CALLS}


def test_the_judge_finds_faults(one):
    """Valid calls declared as invalid ones; and changes of files that only valid calls may make."""
    accepted = call("prepare_data", "--help")
    assert one.judge(accepted) == ([("accepted", "0")], 0, "")
    unnamed = call("prepare_data", "--image_size=two", names=("channels",))
    assert [kind for kind, _ in one.judge(unnamed)[0]] == ["unnamed"]
    before, after = {"run/a": 1, "run/b": 2}, {"run/a": 1, "run/b": 3, "gs:": 4}
    assert [*judge.lost(unnamed, before, after)] == [("lost", "run/b")]
    assert [*judge.left(unnamed, before, after)] == [("left", "gs:")]
