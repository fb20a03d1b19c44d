"""The commands as a user runs them: their files, and one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = [
    "--config=configs/digits.py",
    "--config.model.process_blocks=1",
    "--config.model.num_scales=2",
    "--config.model.num_groups=2",
    "--config.model.encoder_width=8",
    "--config.model.decoder_width=8",
    "--config.model.preprocess_cells=1",
    "--config.model.postprocess_cells=1",
    "--config.model.unroll=1",
    "--config.train.batch_size=16",
    "--config.eval.batch_size=64",
    "--config.eval.recalibration_passes=2",
    "--config.log.every_steps=1",
    "--config.log.num_images=4",
]


# One scale of one group compiles fastest.
SMALLEST = ["num_scales=1", "num_groups=1", "latent_channels=2", "decoder_cell=residual"]
SMALLEST = [*TINY, *(f"--config.model.{key}" for key in [*SMALLEST, "squeeze_excitation=False"])]


def start(script, *arguments, cwd=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch" / f"{script}.py"), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def run(commands):
    """A function from (script, *flags) to (exit status, stdout, stderr)."""

    def call(script, *flags):
        done = commands.run(script, *flags)
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train", ["--workdir=W", "--nonsense=1"], "nonsense"),
        ("train", ["--workdir=W", "--config=configs/nothing.py"], "no file 'configs/nothing.py'"),
        ("train", ["--workdir=W", *TINY, "--config.trian.num_steps=1"], "train.num_steps"),
        ("train", ["--workdir=W", *TINY, "--config.train.num_steps=x"], "invalid literal"),
        ("train", ["--workdir=W", *TINY, "--config.data.image_size=15"], "divisible"),
        ("train", ["--workdir=W", *TINY, "--config.data.name=mnits"], "unknown data set 'mnits'"),
        ("train", ["--workdir=W", *TINY, "--config.data=3"], "did you mean --config.data.dir"),
        (
            "train",
            ["--workdir=W", *TINY, "--config.x"],
            "unknown flag --config.x; did you",
        ),
        ("train", ["--workdir=W", *TINY, "--config.seed=-1"], "seed must be an integer from 0"),
        ("train", ["--workdir=W", *TINY, "--config.data.workers=1000000000"], "data.workers must"),
        ("train", ["--workdir=W", "--config="], "flag --config=: a path must not be empty"),
        ("train", ["--workdir=W", "--config=configs"], "--config: there is no file 'configs'"),
        ("train", ["--workdir=W"], "holds no run to resume"),
        ("train", ["--workdir=W", "--config.log.every_steps=2"], "holds no run to resume"),
        ("train", TINY, "workdir"),
        ("evaluate", ["--workdir=W"], "is not a run directory"),
        ("evaluate", ["--workdir=W", "--num_iw_samples=0"], "num_iw_samples"),
        ("sample", ["--workdir=W", "--out=O"], "is not a run directory"),
    ],
)
def test_wrong_flags_are_a_one_line_error(run, tmp_path, script, arguments, message):
    arguments = [a.replace("=W", f"={tmp_path / 'w'}") for a in arguments]
    code, _, error = run(script, *arguments)
    assert code != 0
    lines = error.strip().splitlines()
    assert len(lines) == 1 and message in lines[0], error
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("script", ["train", "evaluate", "sample"])
def test_help_shows_the_command_and_its_flags(run, script):
    code, out, _ = run(script, "--help")
    assert code == 0 and f"python launch/{script}.py" in out and "--workdir" in out


@pytest.mark.parametrize(
    "arguments",
    [("-m", "nvae_jax.train"), ("-Bmnvae_jax.data.prepare", "--x"), ("nvae_jax/sample.py",)],
)
def test_a_module_that_is_no_command_says_so(arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        "is not a command: `python -m nvae_jax` lists" in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_sigterm_saves_a_run_and_a_second_process_is_refused(run, tmp_path):
    """A real process is started, joined by a second one, stopped and resumed."""
    arguments = [*SMALLEST, f"--workdir={tmp_path / 'run'}", "--config.train.num_steps=100000"]
    process = start("train", *arguments)
    rows = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (rows.exists() and rows.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    code, _, error = run("train", *arguments)
    assert code == 2 and "another process is training in" in error
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "received SIGTERM: saving" in out and "the same command resumes" in error
    saved = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()]
    last = [json.loads(line)["step"] for line in rows.read_text().splitlines()][-1]
    assert saved == [last]
