"""Exported programs give the same results without this package."""

import json
import subprocess
import sys

import numpy as np
import pytest

from nvae_jax import export
from nvae_jax.prior_samples import sample_images

pytest.importorskip("flatbuffers")
USE = """
import sys, jax.export, numpy as np
def load(name):
    return jax.export.deserialize(bytearray(open(name, "rb").read())).call
sample, encode = load("sampler.jax"), load("encoder.jax")
images = sample(np.uint32(3), np.int32(2), np.float32(0.7))
latents = encode(np.load("images.npy"), np.uint32(1), np.float32(0))
assert not [name for name in sys.modules if name.startswith("nvae")]
np.savez("out.npz", images, *latents)
"""


def test_exported_programs_run_without_this_package(run, images, tmp_path):
    export.export_run(run, tmp_path, batch_size=5, temperature=0.7, platforms=("cpu", "cuda"))
    np.save(tmp_path / "images.npy", images)
    # Isolated: neither the working directory nor PYTHONPATH leads to this package.
    used = subprocess.run(
        [sys.executable, "-I", "-c", USE], cwd=tmp_path, capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr
    with np.load(tmp_path / "out.npz") as file:
        found = [file[f"arr_{i}"] for i in range(5)]
    # Image i is the one that `sample_images` draws.
    samples = draw(run, num=7)
    assert np.abs(np.round(found[0] * 255) - samples[2:]).max() <= 1
    means = run.encode(images, temperature=0.0)
    for ours, theirs in zip(found[1:], means, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-4 * max(np.abs(theirs).max(), 1.0)
    metadata = json.loads((tmp_path / "export.json").read_text())
    assert metadata["platforms"] == ["cpu", "cuda"] and metadata["batch_size"] == 5
    assert "16x16x1, zeros and ones" in (tmp_path / "README.txt").read_text()


def draw(run, num):
    images = sample_images(run.experiment, run.variables, num=num, temperature=0.7, seed=3)
    return np.concatenate(list(images))


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"platforms": ["abacus"]}, "unknown platform abacus; known: cpu"),
        ({"platforms": []}, "unknown platform"),
        ({"temperature": -1.0}, "temperature must be positive"),
    ],
)
def test_invalid_arguments_are_errors(run, tmp_path, wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        export.export_run(run, tmp_path, **wrong)
