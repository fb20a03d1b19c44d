"""Every command line in README.md, CONTRIBUTING.md and docs/ is valid."""

import json
import re

import pytest

from tests.docs.pages import PAGES, ROOT, command_lines

LINES = [line for page in PAGES for line in command_lines(page)]
COMMANDS = sorted({line.command for line in LINES if line.command})
TRAINING_SCRIPTS = ("tpu_pod.sh", "slurm.sbatch", "gke.sh")  # hand flags on to `train`


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_line_has_valid_flags(commands, command):
    assert (ROOT / "launch" / f"{command}.py").exists(), command
    lines = [line for line in LINES if line.command == command and line.arguments]
    calls = json.dumps([line.arguments for line in lines])
    done = commands.run("../tests/docs/parse_flags", command, calls)
    assert done.returncode == 0, done.stderr
    faults = zip(lines, json.loads(done.stdout), strict=True)
    assert not [(line, fault) for line, fault in faults if fault]


def test_every_named_config_exists():
    named = {name for line in LINES for name in re.findall(r"--config=([\w./]+)", line.text)}
    files = {f"configs/{name}.py": name for name in named if name == name.lower()}
    assert files, "no page names a config"
    missing = [name for file, name in files.items() if not (ROOT / file).exists()]
    assert not [name for name in missing if not (ROOT / name).is_file()]


def test_every_script_has_the_options_it_is_called_with():
    for line in LINES:
        for script in line.scripts:
            file = ROOT / script
            assert file.exists(), line
        if line.scripts and not line.command:
            text, passed_on = file.read_text(), file.name in TRAINING_SCRIPTS
            for option in line.script_options:
                if passed_on and re.match(r"--(config|workdir)\b", option):
                    continue
                assert re.search(rf"\W{option.lstrip('-')}\b", text), (line, option)


def test_commands_are_found_in_the_pages():
    """Fails if a change of the pages' format hides their commands from these tests."""
    assert len(LINES) > 40 and len(COMMANDS) == len(list((ROOT / "launch").glob("[a-z]*.py")))
