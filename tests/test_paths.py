"""Valid and invalid paths in flags, configs and Python."""

import os
from pathlib import Path

import pytest

from nvae_jax import paths, run_directory, train
from nvae_jax.configs import digits
from nvae_jax.data.spec import DataSpec

REFUSED = {
    "az://bucket/run": "az:// is not supported",
    "gs://": "looks like gs://BUCKET/FOLDER",
    "s3:///": "looks like s3://BUCKET/FOLDER",
    "gs://bucket/../other": "looks like gs://BUCKET/FOLDER",
    "gs://bucket/run[1]": "which are wildcards",
    "file:///tmp/run": "file:/// is not supported",
    "hdfs://host/run": "hdfs:// is not supported",
    " file://bucket": "file:// is not supported",
    "": "a path must not be empty",
    "  ": "a path must not be empty",
    "run\0": "a path must not contain NUL bytes",
    None: "it is not a path",
    b"run": "it is not a path",
    Path("az://bucket/run"): "az:/ is not supported",
}


@pytest.mark.parametrize("path, complaint", REFUSED.items(), ids=repr)
def test_invalid_paths_are_errors(path, complaint):
    with pytest.raises(ValueError, match=f"^workdir=.*{complaint}"):
        paths.parse(path, "workdir")


def test_valid_paths_are_parsed():
    for text in ("runs/a", "/data/a:b", "a=b", "C:", "./gs:", "ä ö"):
        assert paths.parse(text) == Path(text)
    assert paths.parse("~/runs") == Path.home() / "runs"


@pytest.mark.parametrize("text", ["gs://bucket/run", " gs://bucket/run/", "gs:/bucket/run"])
def test_a_path_in_a_bucket_is_parsed(text):
    path = paths.parse(Path(text) if text == "gs:/bucket/run" else text)
    assert str(path) == "gs://bucket/run" and paths.is_bucket(path) and path.bucket == "bucket"
    assert str(path.absolute() / "a" / "b.png") == "gs://bucket/run/a/b.png"
    assert paths.parse(path.parent) == paths.parse("gs://bucket") != paths.parse("s3://bucket")
    assert not paths.is_bucket(paths.parse("runs/gs"))


@pytest.mark.parametrize("command", ["train", "load_config", "open_for_training"])
def test_functions_refuse_an_unsupported_path_before_writing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="workdir='az://bucket/run': az:// is not supported"):
        if command == "train":
            train.train(digits.get_config(), "az://bucket/run")
        elif command == "load_config":
            run_directory.load_config("az://bucket/run")
        else:
            with run_directory.open_for_training("az://bucket/run", digits.get_config()):
                pass
    with pytest.raises(ValueError, match="data.dir='az://bucket': az:// is not supported"):
        DataSpec("mnist", dir="az://bucket")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command, flags",
    [
        ("train", "--workdir=az://bucket/run"),
        ("evaluate", "--workdir=az://bucket/run"),
        ("sample", "--workdir=runs/a --out=hf://bucket/out"),
        ("encode", "--workdir=runs/a --out=a.npz --images=file:///a.png"),
        ("decode", "--workdir=runs/a --out=a --latents=az://bucket/a.npz"),
        ("nearest", "--workdir=runs/a --out=a --samples=az://bucket/a.npz"),
        ("convert_checkpoint", "--workdir=runs/a --torch=az://bucket/a.pt"),
        ("prepare_data", "--name=folder --manual_dir=az://bucket --data_dir=a"),
        ("prepare_data", "--name=folder --manual_dir=a --data_dir=hdfs://host/a"),
    ],
)
def test_every_path_flag_refuses_an_unsupported_scheme(commands, command, flags, tmp_path):
    done = commands.run(command, *flags.split(), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: flag --") and "// is not supported" in line
    assert not list(tmp_path.iterdir())


def test_an_output_is_checked_to_be_a_writable_file(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    assert paths.check_writable(tmp_path / "a" / "b.npz", "--out").parent == tmp_path / "a"
    assert paths.check_writable(tmp_path / "file", "--out")
    with pytest.raises(ValueError, match="file is a file, not a folder"):
        paths.check_writable(tmp_path / "file" / "b.npz", "--out")
    with pytest.raises(ValueError, match="is a folder, not a file"):
        paths.check_writable(tmp_path, "--out")
    with pytest.raises(ValueError, match="is not a regular file"):
        paths.check_writable(tmp_path / "pipe", "--out")
    if os.getuid():  # root can write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(ValueError, match="cannot be written to"):
            paths.check_writable(tmp_path / "locked" / "b.npz", "--out")
