"""Every command: help, and one line for what is wrong."""

import pytest

COMMANDS = {
    "sample": ["--out=OUT"],
    "encode": ["--out=OUT"],
    "decode": ["--out=OUT", "--latents=absent.npz"],
    "reconstruct": ["--out=OUT"],
    "interpolate": ["--out=OUT"],
    "traverse": ["--out=OUT", "--group=0"],
    "nearest": ["--out=OUT"],
    "analyze": ["--out=OUT"],
    "export": ["--out=OUT"],
    "convert_checkpoint": ["--torch=out.pt", "--export"],
}


@pytest.mark.parametrize("script", COMMANDS)
def test_a_folder_that_is_no_run(commands, tmp_path, script):
    flags = [flag.replace("OUT", str(tmp_path / "out")) for flag in COMMANDS[script]]
    found = commands.run(script, f"--workdir={tmp_path}", *flags)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("error: ")
    complaint = "there is no file" if script == "decode" else "is not a run directory"
    assert complaint in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()


def test_help_and_wrong_flags(commands):
    shown = commands.run("traverse", "--help")
    assert shown.returncode == 0 and "--channel" in shown.stdout
    assert shown.stdout.startswith("Variations of one latent group")
    wrong = commands.run("traverse", "--workdir=.", "--out=.", "--grupe=1")
    assert wrong.returncode == 2 and "grupe" in wrong.stderr and "Traceback" not in wrong.stderr


def test_an_out_of_range_group(commands, workdir, tmp_path):
    found = commands.run("traverse", f"--workdir={workdir}", f"--out={tmp_path}", "--group=7")
    assert found.returncode == 2
    assert "error: group must be from 0 (coarsest) to 3, not 7" in found.stderr
