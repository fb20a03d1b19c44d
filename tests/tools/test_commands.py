"""Every command: help, and one line for what is wrong."""

import pytest

COMMANDS = {
    "sample.py": ["--out=OUT"],
    "encode.py": ["--out=OUT"],
    "decode.py": ["--out=OUT", "--latents=absent.npz"],
    "reconstruct.py": ["--out=OUT"],
    "interpolate.py": ["--out=OUT"],
    "traverse.py": ["--out=OUT", "--group=0"],
    "nearest.py": ["--out=OUT"],
    "analyze.py": ["--out=OUT"],
    "export.py": ["--out=OUT"],
    "convert_checkpoint.py": ["--torch=out.pt", "--export"],
}


@pytest.mark.parametrize("script", COMMANDS)
def test_a_folder_that_is_no_run(command, tmp_path, script):
    flags = [flag.replace("OUT", str(tmp_path / "out")) for flag in COMMANDS[script]]
    found = command(script, f"--workdir={tmp_path}", *flags)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("error: ")
    complaint = "there is no file" if script == "decode.py" else "is not a run directory"
    assert complaint in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()


def test_help_and_wrong_flags(command):
    shown = command("traverse.py", "--help")
    assert shown.returncode == 0 and "--channel" in shown.stdout
    assert shown.stdout.startswith("Variations of one latent group")
    wrong = command("traverse.py", "--workdir=.", "--out=.", "--grupe=1")
    assert wrong.returncode == 2 and "grupe" in wrong.stderr and "Traceback" not in wrong.stderr


def test_an_out_of_range_group(command, workdir, tmp_path):
    found = command("traverse.py", f"--workdir={workdir}", f"--out={tmp_path}", "--group=7")
    assert found.returncode == 2
    assert "error: group must be from 0 (coarsest) to 3, not 7" in found.stderr
