"""Batch-norm statistics from prior samples."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nvae_jax import recalibrate as module
from nvae_jax.noise import image_keys, latent_noise
from nvae_jax.recalibrate import recalibrate, recalibrated_statistics

KEY = jax.random.key(5)


def statistics_of_pass(run, number, size, temperature, momentum=1.0, batch_stats=None):
    """The statistics after one pass with batch statistics, computed step by step."""
    model = run.experiment.model.clone(bn_momentum=momentum)
    noise = latent_noise(model, image_keys(KEY, np.arange(number * size, (number + 1) * size)))
    variables = dict(run.state.variables)
    variables["batch_stats"] = batch_stats or variables["batch_stats"]
    step = jax.jit(
        lambda v, n: model.apply(
            v, noise=n, temperature=temperature, train=True, method="sample_logits",
            mutable=["batch_stats"],
        )[1]["batch_stats"]
    )  # fmt: skip
    return step(variables, noise)


def assert_close(ours, expected):
    ours, expected = flatten_dict(ours), flatten_dict(expected)
    assert set(ours) == set(expected)
    for path in expected:
        np.testing.assert_allclose(ours[path], expected[path], rtol=2e-4, atol=1e-5)


def test_pooled_statistics_equal_those_of_all_passes(run):
    passes = [flatten_dict(statistics_of_pass(run, i, 4, 0.7)) for i in range(3)]
    expected = {path: np.mean([p[path] for p in passes], 0) for path in passes[0]}
    for path in expected:
        if path[-1] == "var":
            means = [p[(*path[:-1], "mean")] for p in passes]
            expected[path] = expected[path] + np.var(means, 0)
    found = recalibrate(
        run.experiment.model, run.state.variables, KEY, temperature=0.7, passes=3, batch_size=4
    )
    found = flatten_dict(found)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=2e-4, atol=1e-5)
        assert found[path].dtype == jnp.float32


def test_published_statistics_are_a_moving_average(run):
    expected = None
    for i in range(2):
        expected = statistics_of_pass(run, i, 4, 0.7, 0.05, expected)
    assert_close(
        recalibrate(
            run.experiment.model,
            run.state.variables,
            KEY,
            temperature=0.7,
            passes=2,
            batch_size=4,
            method="published",
        ),
        expected,
    )


def test_the_encoder_keeps_its_statistics(run):
    found = recalibrate(run.experiment.model, run.state.variables, KEY, passes=2, batch_size=4)
    before = flatten_dict(run.state.variables["batch_stats"])
    changed = {
        path[0] for path, value in flatten_dict(found).items() if np.any(value != before[path])
    }
    assert changed == {"top_down", "postprocess"}


@pytest.mark.parametrize("method", module.METHODS)
@pytest.mark.parametrize("factor", [1e12, 1e-30, 0.0])
def test_finite_weights_give_finite_statistics(run, method, factor):
    def scaled(path, value):
        return value * factor if "norm_0']['scale" in jax.tree_util.keystr(path) else value

    variables = dict(run.state.variables)
    variables["params"] = jax.tree_util.tree_map_with_path(scaled, variables["params"])
    found = recalibrate(run.experiment.model, variables, KEY, passes=3, batch_size=2, method=method)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_statistics_are_cached_by_temperature_passes_and_method(run, workdir, monkeypatch):
    def statistics(**kwargs):
        return recalibrated_statistics(workdir, run.experiment, run.state, **kwargs)

    first = statistics(temperature=0.6, passes=2)
    calls = []
    monkeypatch.setattr(module, "recalibrate", lambda *a, **k: calls.append(k) or first)
    again = statistics(temperature=0.6, passes=2)
    assert not calls
    jax.tree.map(np.testing.assert_array_equal, first, again)
    statistics(temperature=0.5, passes=2)
    statistics(temperature=0.6, passes=1)
    statistics(temperature=0.6, passes=2, method="published")
    assert [(c["temperature"], c["passes"], c["method"]) for c in calls] == [
        (0.5, 2, "pooled"),
        (0.6, 1, "pooled"),
        (0.6, 2, "published"),
    ]
    # Another model at the same step, such as after training the run again.
    other = jax.tree.map(lambda a: a + 1, run.state.collections)
    retrained = dataclasses.replace(run.state, collections=other)
    recalibrated_statistics(workdir, run.experiment, retrained, temperature=0.6, passes=2)
    assert len(calls) == 4


def without_a_file(path):
    path.unlink()
    path.mkdir()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def change(path, function):
    """Rewrites the arrays of a file."""
    arrays = {name: function(array) for name, array in np.load(path).items()}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"torn"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"NUMPY", b"NOMPY")),
        lambda path: change(path, lambda array: array * np.nan),
        lambda path: change(path, lambda array: array[:-1]),
        lambda path: change(path, lambda array: array.astype(str)),
        lambda path: path.write_bytes(npy(np.zeros(3))),
        without_a_file,
    ],
)
def test_damaged_statistics_are_computed_again(run, tmp_path, monkeypatch, damage):
    good = run.state.variables["batch_stats"]
    calls = []
    monkeypatch.setattr(module, "recalibrate", lambda *a, **k: calls.append(k) or good)

    def statistics():
        return recalibrated_statistics(tmp_path, run.experiment, run.state, temperature=0.6)

    statistics(), statistics()
    assert len(calls) == 1
    damage(*(tmp_path / "recalibration").iterdir())
    jax.tree.map(np.testing.assert_array_equal, statistics(), good)
    assert len(calls) == 2


@pytest.mark.parametrize("wrong", [{"passes": 0}, {"batch_size": 1}, {"method": "guess"}])
def test_invalid_numbers_are_errors(run, wrong):
    with pytest.raises(ValueError, match="recalibration"):
        recalibrate(run.experiment.model, run.state.variables, KEY, **wrong)
