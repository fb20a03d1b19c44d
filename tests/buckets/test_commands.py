"""The commands, when everything that they read and write is in a bucket."""

import logging
import signal

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from PIL import Image

from nvae_jax import api, buckets, build, cli, run_directory
from tests.buckets.conftest import config_for

HERE = buckets.BucketPath("gs://bucket/commands")
RUN, OUT = f"--workdir={HERE}/run", f"--out={HERE}/out"

# The other commands are run in a bucket by tests/tools/test_multihost.py and tests/interop.
COMMANDS = {
    "prepare_data": ["--name=folder", f"--manual_dir={HERE}/images", f"--data_dir={HERE}/data"],
    "train": [RUN, "--profile=2:2"],
    "score": [RUN, OUT, f"--against={HERE}/images/train", "--num_iw_samples=1"],
    "restore": [RUN, OUT, f"--mask={HERE}/images/test/0.png", "--steps=1", "--samples=1"],
    "explore": [RUN, "--port=0", "--num=2"],
    "report": [RUN, "--num=2", "--passes=3", "--temperatures=1", "--nonearest"],
    "export": [RUN, OUT, "--norecalibrate_bn", "--platforms=cpu"],
    "push": [f"{HERE}/pushed", RUN],
    "pull": [f"{HERE}/pushed", f"--workdir={HERE}/pulled"],
}
WRITTEN = """
data/folder/manifest.json run/checkpoints/9/commit_success.txt run/metrics.jsonl
run/events.out.tfevents.* run/plugins/profile/*/*.xplane.pb run/samples/step_00000009_*.png
out/scores.csv out/scores.json out/scores.npz out/restored.npz out/restored.png run/report.html
run/recalibration/* out/sampler.jax out/encoder.jax out/export.json pushed/model.safetensors
pulled/checkpoints/9/state
"""
# Asks `explore` for a picture, and ends it.
ASK = """
import json, os, signal, threading, urllib.request
from nvae_jax.explore import server

def ask(port):
    wanted = {"kind": "samples", "seed": 0, "temperature": 1, "recalibrate": True}
    body = json.dumps({"window": "", "request": wanted}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/ask", body) as answer:
        *_, last = answer
    print(sorted(json.loads(last).get("result", {})), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

def listen(port, listen=server.listen):
    listening = listen(port)
    threading.Thread(target=ask, args=[listening.getsockname()[1]]).start()
    return listening

server.listen = listen
"""


@pytest.fixture
def images(store, tmp_path):
    """A folder of pictures in the bucket."""
    rng = np.random.default_rng(0)
    for name in (f"{split}/{number}.png" for split in ("train", "test") for number in range(16)):
        pixels = (rng.random((16, 16)) > 0.5).astype(np.uint8) * 255
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
        (HERE / "images" / name).upload(tmp_path / name)


def test_commands_read_from_and_write_to_buckets(commands, images, tmp_path):
    """All paths are in the bucket. The user's home folder gets only copies of data."""
    config = config_for()
    config.data.update(name="folder", dir=f"{HERE}/data")
    run_directory.save_config(HERE / "run", build.resolve(config))

    for command, flags in COMMANDS.items():
        asks = command == "explore"
        home = str(tmp_path / "home")
        done = commands.run(command, *flags, before=ASK if asks else "", HOME=home)
        ends = 128 + signal.SIGTERM if asks else 0
        assert done.returncode == ends, (command, done.stderr)
        assert "'images'" in done.stdout or not asks
        assert "gs:/b" not in done.stdout + done.stderr
    for pattern in WRITTEN.split():
        assert list(HERE.glob(pattern)), pattern
    assert [path.name for path in (tmp_path / "home").iterdir()] == [".cache"]
    assert api.load(str(HERE / "pulled")).sample(2, seed=0).shape == (2, 16, 16, 1)


@pytest.fixture
def programs(bucket, monkeypatch, compilation_cache):
    """The folder in which compiled programs are cached."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", f"{bucket}/programs")
    cli._use_compilation_cache()
    reset_cache()
    yield bucket / "programs"
    jax.config.update("jax_compilation_cache_dir", compilation_cache)
    reset_cache()


def test_compiled_programs_are_cached_in_a_bucket(programs, caplog):
    caplog.set_level(logging.DEBUG, "jax._src.compiler")
    for hits in range(2):
        assert jax.jit(lambda x: 3 * x + 1)(1.0) == 4
        assert list(programs.iterdir())
        assert ("cache hit" in caplog.text.lower()) == hits
