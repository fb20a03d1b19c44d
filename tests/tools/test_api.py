"""The Python API: results of its methods, and errors for wrong arguments."""

import dataclasses

import jax
import numpy as np
import pytest

from nvae_jax import api, progress
from nvae_jax.models.latents import GIVEN, POSTERIOR, PRIOR
from nvae_jax.noise import image_keys, latent_noise
from nvae_jax.sample import sample_run

AVERAGED = {"model": {"num_groups": 1}, "train": {"ema_decay": 0.9}}


def close(one, other, tolerance=1e-4):
    return np.abs(np.asarray(one) - np.asarray(other)).max() <= tolerance


@pytest.fixture
def run(small_run):
    """A run with two scales of one group."""
    return small_run


def test_encoding_and_decoding_equals_reconstruction(run, images):
    latents = run.encode(images, seed=4)
    assert [z.shape for z in latents] == [(5, *shape) for shape in run.latent_shapes]
    copies = run.reconstruct(images, seed=4)
    assert copies.shape == images.shape and copies.min() >= 0 and copies.max() <= 1
    assert close(run.decode(latents), copies)
    assert not close(run.decode(run.encode(images, seed=5)), copies)


def test_temperature_zero_encodes_to_posterior_means(run, images):
    model, variables = run.experiment.model, run.state.variables
    zeros = [np.zeros((5, *shape), np.float32) for shape in run.latent_shapes]
    out = jax.jit(model.apply)(variables, images, noise=zeros)
    for ours, expected in zip(run.encode(images, temperature=0.0), out.latents, strict=True):
        assert close(ours, expected)


def test_noise_of_the_prior_can_be_decoded_and_recovered(run, images):
    noise = run.draw_noise(5, seed=2)
    samples = run.from_noise(noise, temperature=1.0)
    assert close(samples, run.sample(5, seed=2))
    latents = run.compose(np.full(2, PRIOR), np.ones(2), latents=noise)[1]
    for ours, expected in zip(run.standardize(latents), noise, strict=True):
        assert close(ours, expected, 1e-3)
    back = run.from_noise(run.standardize(run.encode(images, seed=4)))
    assert close(back, run.reconstruct(images, seed=4), 1e-3)


def test_a_partial_reconstruction_equals_decoding_the_first_groups(run, images):
    assert close(run.reconstruct(images, groups=2), run.reconstruct(images))
    assert close(run.reconstruct(images, groups=0, seed=3), run.sample(5, seed=3))
    latents = run.encode(images, seed=3)
    part = run.reconstruct(images, groups=1, temperature=0.7, seed=3)
    assert close(part, run.decode(latents[:1], temperature=0.7, seed=3))
    assert not close(part, run.reconstruct(images, groups=1, temperature=0.1, seed=3))


def test_each_group_has_its_own_source_and_temperature(run, images):
    """One pass with posterior, prior and given latents equals the separate parts of the model."""
    noise, prepared = run.draw_noise(5, seed=1), run.prepare(images)

    def compose(*sources, temperature=1.0):
        temperatures = np.where(np.equal(sources, PRIOR), temperature, 1.0)
        return run.compose(sources, temperatures, images=prepared, latents=noise)[1:]

    posterior = compose(POSTERIOR, POSTERIOR)[0]
    latents, standard = compose(POSTERIOR, PRIOR, temperature=0.5)
    assert close(latents[0], posterior[0]) and not close(latents[1], posterior[1], 1e-2)
    assert close(standard[1], 0.5 * noise[1], 1e-3)
    latents, standard = compose(GIVEN, PRIOR, temperature=0.2)
    assert close(latents[0], noise[0]) and close(standard[1], 0.2 * noise[1], 1e-3)
    latents, standard = compose(PRIOR, GIVEN, temperature=0.5)
    assert close(standard[0], 0.5 * noise[0], 1e-3) and close(latents[1], noise[1])


def test_results_do_not_depend_on_the_batch_size(run, images, monkeypatch, capsys):
    other = api.load(run.workdir, batch_size=2)
    monkeypatch.setattr(progress, "SECONDS", 0.0)  # every batch counts as long work
    assert close(run.reconstruct(images), other.reconstruct(images))
    assert "computing: batch" in capsys.readouterr().err


def test_log_prob_is_a_bound_that_more_samples_tighten(run, images):
    one = run.log_prob(images)
    assert one.shape == (5,)
    many = run.log_prob(images, num_samples=8)
    assert many.mean() > one.mean()  # a tighter bound
    key = jax.random.fold_in(jax.random.key(0), 0)
    noise = latent_noise(run.experiment.model, image_keys(key, np.arange(5)))
    out = jax.jit(run.experiment.model.apply)(run.state.variables, images, noise=noise)
    log_likelihood = run.experiment.likelihood(out.logits).log_prob(images)
    np.testing.assert_allclose(one, log_likelihood + out.log_p - out.log_q, rtol=1e-4)


def test_recalibration_changes_samples_and_is_in_the_metadata(run):
    recalibrated = run.recalibrated(0.8)
    assert recalibrated.metadata(seed=1) == {
        "model": "NVAE of digits 16x16x1: 2 groups on 2 scale(s), widths 4 and 4",
        "step": 0,
        "weights": run.state.fingerprint,
        "recalibration": "pooled, 3 passes of 4 images at temperature 0.8",
        "seed": 1,
    }
    samples = [r.sample(3, temperature=0.8) for r in (run, recalibrated)]
    assert not close(*samples, 1e-2)
    assert recalibrated.programs is run.programs


@pytest.mark.parametrize("averaged", [False, True])
def test_inference_does_not_change_the_run(make_run, run, images, tmp_path, averaged):
    """After recalibration and sampling, the run evaluates as before, with and without
    `train.ema_decay`."""
    programs = run.programs  # compiled already
    if averaged:
        run = api.load(make_run(tmp_path / "run", **AVERAGED))
    fresh = dataclasses.replace(run, programs=programs)
    evaluated = [fresh.log_prob(images)]
    fresh.recalibrated(0.8).sample(2, temperature=0.8)
    options = {"out": tmp_path / "out", "num": 2, "temperature": 0.8}
    sample_run(run.workdir, run.experiment, run.state, **options)
    again = dataclasses.replace(fresh)  # takes its variables from the state again
    evaluated += [fresh.log_prob(images), again.log_prob(images)]
    np.testing.assert_array_equal(evaluated[0], evaluated[1])
    np.testing.assert_array_equal(evaluated[0], evaluated[2])


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda r, x: r.reconstruct(x, groups=5), "groups must be from 0 to 2, not 5"),
        (lambda r, x: r.reconstruct(x, groups=-1), "groups must be"),
        (lambda r, x: r.reconstruct(255 * x), "divide by 255"),
        (lambda r, x: r.encode(x[:, :8]), "must be of shape"),
        (lambda r, x: r.encode(x, temperature=-1.0), "temperature must not be negative"),
        (lambda r, x: r.sample(0), "num must be at least 1"),
        (lambda r, x: r.sample(1, temperature=0.0), "temperature must be positive"),
        (lambda r, x: r.sample(1, temperature=[1, 1, 1]), "3 values for 2 scale"),
        (lambda r, x: r.decode([]), "latents have shapes"),
        (lambda r, x: r.decode([np.zeros((2, 3, 3, 2))]), "latents have shapes"),
        (lambda r, x: r.from_noise(r.draw_noise(2)[:1]), "latents have shapes"),
        (lambda r, x: r.decode([np.full((1, 4, 4, 2), np.nan)]), "must be finite, but some of g"),
        (lambda r, x: r.decode([np.zeros((1, 4, 4, 2), int)]), "must be float, but group 0 is int"),
        (lambda r, x: r.sample(10**14), "num=100000000000000 needs more than this"),
        (lambda r, x: r.draw_noise(10**14), "num=100000000000000 needs more than this"),
        (lambda r, x: api.load(r.workdir, 10**12), "batch_size=1000000000000 needs more"),
        (lambda r, x: api.load("az://bucket/run"), "workdir='az://bucket/run': az:// is not supp"),
        (lambda r, x: r.log_prob(x, num_samples=0), "num_samples must be at least 1"),
        (lambda r, x: r.recalibrated(-1.0), "temperature must be positive"),
        (lambda r, x: api.load(r.workdir, 0), "batch_size must be at least 1"),
        (lambda r, x: api.load(r.workdir / "checkpoints"), "not a run directory"),
    ],
)
def test_invalid_arguments_are_errors(run, images, call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(run, images)


def test_only_changeable_keys_of_the_config_can_be_changed(run):
    workdir = run.workdir
    run = api.load(workdir, changes={"eval.batch_size": 3, "data.dir": "/elsewhere"})
    assert run.batch_size == 3 and run.experiment.data.dir == "/elsewhere"
    with pytest.raises(ValueError, match="data.name cannot change: drop it"):
        api.load(workdir, changes={"data.name": "mnist"})
