"""Help and one-line errors of the commands."""

import numpy as np
import pytest

from nvae_jax import api, pictures

COMMANDS = {
    "sample": ["--out=OUT"],
    "encode": ["--out=OUT"],
    "decode": ["--out=OUT", "--latents=absent.npz"],
    "reconstruct": ["--out=OUT"],
    "restore": ["--out=OUT", "--mask=half"],
    "interpolate": ["--out=OUT"],
    "traverse": ["--out=OUT", "--group=0"],
    "nearest": ["--out=OUT"],
    "analyze": ["--out=OUT"],
    "export": ["--out=OUT"],
    "convert_checkpoint": ["--torch=out.pt", "--export"],
}


@pytest.mark.parametrize("script", COMMANDS)
def test_a_folder_without_a_run_is_a_one_line_error(commands, tmp_path, script):
    flags = [flag.replace("OUT", str(tmp_path / "out")) for flag in COMMANDS[script]]
    found = commands.run(script, f"--workdir={tmp_path}", *flags)
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].startswith("error: ")
    assert "is not a run directory" in found.stderr and "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()


def test_help_is_shown_and_wrong_flags_are_refused(commands):
    shown = commands.run("traverse", "--help")
    assert shown.returncode == 0 and "--channel" in shown.stdout
    assert shown.stdout.startswith("Varies one latent group")
    wrong = commands.run("traverse", "--workdir=.", "--out=.", "--grupe=1")
    assert wrong.returncode == 2 and "grupe" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_group_out_of_range_is_an_error(commands, workdir, tmp_path):
    found = commands.run("traverse", f"--workdir={workdir}", f"--out={tmp_path}", "--group=7")
    assert found.returncode == 2
    assert "error: group must be from 0 (coarsest) to 3, not 7" in found.stderr


def test_the_folder_of_data_that_moved_is_a_flag(commands, make_run, images, tmp_path):
    """A command that does not find its data names the flag for their folder, and accepts it."""
    data = {"name": "folder", "dir": str(tmp_path / "before")}
    run, after = make_run(tmp_path / "run", data=data), tmp_path / "after"
    for number in range(12):
        pictures.save_png(after / f"{number}.png", pictures.to_uint8(images[number % 5]))
    flags = [f"--workdir={run}", f"--out={tmp_path / 'z.npz'}", "--num=2", "--batch_size=2"]
    missing = commands.run("encode", *flags)
    assert missing.returncode == 2 and "--config.data.dir=" in missing.stderr
    found = commands.run("encode", *flags, f"--config.data.dir={after}")
    assert found.returncode == 0, found.stderr
    fixed = commands.run("encode", *flags, "--config.data.padding=2")
    assert fixed.returncode == 2 and "data.padding cannot change" in fixed.stderr
    assert "before" in (run / "config.json").read_text()


def test_nan_in_a_checkpoint_is_an_error(make_run, random_variables, tiny_run_config, tmp_path):
    variables = random_variables(tiny_run_config)
    variables["params"]["image_head"]["bias"][0] = np.nan
    run = make_run(tmp_path / "run", variables)
    with pytest.raises(ValueError, match="NaN or infinity in 1 array.*params/image_head/bias"):
        api.load(run)
