"""`python -m nvae_jax COMMAND`, which is the same as `nvae-jax COMMAND`."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.stem: path for path in (ROOT / "launch").glob("[a-z]*.py")}


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_has_a_line_for_every_command(commands, arguments):
    shown = commands.run("nvae_jax", *arguments)
    assert shown.returncode == 0 and shown.stdout.startswith("python -m nvae_jax COMMAND")
    rows = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines()[2:-2])
    assert rows.keys() == SCRIPTS.keys()
    assert all(f'"""{summary}' in SCRIPTS[name].read_text() for name, summary in rows.items())


@pytest.mark.parametrize(
    ("name", "hint"), [("trian", "did you mean train?"), ("", "known: analyze, "), ("--x=1", "")]
)
def test_an_unknown_command_is_a_one_line_error(commands, name, hint):
    done = commands.run("nvae_jax", name)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: unknown command {name!r}; ") and hint in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_a_command_as_it_was_called(commands, name):
    script = commands.run(name, "--help").stdout
    command = commands.run("nvae_jax", name, "--help").stdout
    assert re.search(rf"python launch/{name}\.py (NAME )?\[?--", script)
    assert f"\n{SCRIPTS[name]}:" in script
    assert re.search(rf"python -m nvae_jax {name} (NAME )?\[?--", command)
    assert f"\npython -m nvae_jax {name}:" in command
    assert "launch/" not in command and "--config=configs/" not in command
    assert script.count("\n  --") == command.count("\n  --") > 0  # the same flags


def test_an_error_names_commands_as_they_were_called(commands, tmp_path):
    for name, program in (("nvae_jax", "python -m nvae_jax prepare_data"), ("", "launch/prepare")):
        words = [name, "prepare_data"] if name else ["prepare_data"]
        done = commands.run(*words, "--name=ffhq256", f"--data_dir={tmp_path}")
        assert done.returncode == 2 and f"run: {program}" in done.stderr.replace("python l", "l")


def test_a_config_is_found_by_name_from_any_folder(commands, tmp_path):
    flags = ["--workdir=run", "--check"]
    done = commands.run("nvae_jax", "train", "--config=mnist", *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = commands.run("nvae_jax", "train", "--config=mnits", *flags, cwd=tmp_path)
    assert done.returncode == 2 and "did you mean mnist" in done.stderr


def test_a_config_file_can_import_the_configs_of_the_checkout(commands, tmp_path):
    (tmp_path / "mine.py").write_text("from configs.base import get_config")
    done = commands.run("train", f"--config={tmp_path}/mine.py", "--workdir=W", "--check")
    assert (done.returncode, done.stderr) == (0, "")
