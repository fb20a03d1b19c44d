"""SIGTERM ends a command that uses a trained model, without incomplete files."""

import os
import signal
import time

import pytest

from nvae_jax import files
from nvae_jax.interrupt import Interrupted, raise_on_sigterm
from tests.tools.conftest import ROOT


def test_interrupted_sampling_ends_at_once_and_leaves_no_file(commands, workdir, tmp_path):
    out, script = tmp_path / "out", ROOT / "launch" / "sample.py"
    flags = [f"--workdir={workdir}", f"--out={out}", "--num=10000000", "--temperature=1"]
    process = commands.start(script, *flags, environment=dict(os.environ))
    deadline = time.monotonic() + 240
    while not any(path.stat().st_size > 10_000 for path in out.glob("*")):  # batches are arriving
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert error.splitlines()[-1] == "stopped by SIGTERM: no file is half-written"
    assert "Traceback" not in error and not list(out.iterdir())


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "there" / "a.txt"
    with files.atomic_write(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(Interrupted) as caught, raise_on_sigterm():
        with files.atomic_write(path) as temporary:
            temporary.write_text("half")
            signal.raise_signal(signal.SIGTERM)
    assert caught.value.signal_number == signal.SIGTERM
    assert [p.read_text() for p in path.parent.iterdir()] == ["old"]
