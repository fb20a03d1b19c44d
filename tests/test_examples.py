"""The scripts of examples/, with small models."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import nvae_jax
from tests.conftest import tiny_config
from tests.tools.conftest import make_run, tiny_run_config  # noqa: F401

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, make_run):  # noqa: F811
    """The run directory of a small model."""
    return make_run(tmp_path_factory.mktemp("examples") / "run", model={"num_scales": 1})


@pytest.fixture
def example(request):
    """The names that a script defines; the test is named after the script."""
    return runpy.run_path(str(EXAMPLES / f"{request.function.__name__.removeprefix('test_')}.py"))


def test_every_example_has_a_test_and_is_short():
    for path in EXAMPLES.glob("*.py"):
        assert f"test_{path.stem}" in globals() and len(path.read_text().splitlines()) <= 60


def test_own_data_and_loop(example, capsys):
    images = example["squares"](40)
    assert images.shape == (40, 16, 16, 1) and set(np.unique(images)) == {0, 1}
    config = tiny_config(model={"unroll": 1, "num_scales": 1})
    model, variables, nats = example["train"](config, images, num_steps=8, batch_size=8)
    begun = model.init(jax.random.key(0), images)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, begun)
    first = float(capsys.readouterr().out.split()[2])
    assert np.isfinite(nats) and nats < first


def test_fine_tune(example, workdir, tmp_path):
    before = nvae_jax.load(workdir)
    images = example["inverted"](before, 12)
    assert images.dtype == np.uint8 and images.shape == (12, 16, 16, 1)
    after = example["fine_tune"](workdir, images, tmp_path / "new", num_steps=4, batch_size=4)
    assert (before.state.step, after.state.step) == (0, 4)
    params = (jax.tree.leaves(run.variables["params"]) for run in (before, after))
    change = [np.abs(new - old).max() for old, new in zip(*params, strict=True)]
    assert 0 < max(change) < 0.01  # small steps, from where the old run was


def test_latents_to_scikit_learn(example, workdir):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    run, (images, labels) = nvae_jax.load(workdir), example["digits"]()
    images, labels = images[:160], labels[:160]
    found = example["features"](run, images[:3])
    assert found.shape == (3, sum(h * w * z for h, w, z in run.latent_shapes))
    assert example["accuracy"](run, images, labels) > 0.25  # of ten classes, by a random model
