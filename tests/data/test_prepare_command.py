"""Runs launch/prepare_data.py as a user does."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from nvae_jax.data import records

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, ROOT / "launch" / "prepare_data.py", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )


def test_a_folder_is_prepared_and_the_flags_to_use_it_are_printed(pictures, tmp_path):
    done = run(
        "--name=folder", f"--manual_dir={pictures}", f"--data_dir={tmp_path}", "--image_size=16"
    )
    assert done.returncode == 0, done.stderr
    assert f"--config=folder --config.data.dir={tmp_path}/folder" in done.stdout
    assert (tmp_path / "folder" / "manifest.json").is_file()


def test_the_value_of_white_and_skipping_corrupt_images_are_flags(commands, tmp_path, encode):
    (tmp_path / "scans").mkdir()
    for i in range(30):
        values = np.full((8, 8, 1), 100 * i, np.uint16)
        (tmp_path / "scans" / f"{i:02d}.png").write_bytes(encode(values))
    (tmp_path / "scans" / "torn.png").write_bytes(b"")
    call = ["prepare_data", "--name=folder", f"--manual_dir={tmp_path}/scans"]
    call += [f"--data_dir={tmp_path}/out", "--channels=1", "--skip_corrupt"]
    refused = commands.run(*call)
    assert refused.returncode == 2 and "--max_value of prepare_data" in refused.stderr
    done = commands.run(*call, "--max_value=4095")
    assert done.returncode == 0 and "8x8x1, 1 unreadable ones skipped" in done.stdout, done.stderr
    images = records.RecordImages(tmp_path / "out" / "folder", "train")
    assert max(images[i].max() for i in range(len(images))) > 127


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--name=ffhq256"], "put|download images1024x1024"),
        (["--name=cifar11"], "unknown data set 'cifar11'"),
        (["--nme=cifar10"], "nme"),
    ],
    ids=["by hand", "name", "flag"],
)
def test_errors_are_one_line_and_an_exit_status(commands, arguments, message, tmp_path):
    folder = [] if "nme" in message else [f"--data_dir={tmp_path}"]
    done = commands.run("prepare_data", *arguments, *folder)
    assert done.returncode != 0 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert any(part in done.stderr for part in message.split("|"))
