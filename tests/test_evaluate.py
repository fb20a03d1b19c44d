import signal
from functools import partial

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from nvae_jax import evaluate, likelihoods
from nvae_jax.data import pipeline
from nvae_jax.interrupt import Interrupted
from nvae_jax.noise import image_keys, latent_noise
from nvae_jax.state import Snapshot


def batches(images, size):
    """Padded batches with masks."""
    for start in range(0, len(images), size):
        part = images[start : start + size]
        blank = np.zeros((size - len(part), *part.shape[1:]), np.float32)
        mask = np.arange(size) < len(part)
        yield {"image": np.concatenate([part, blank]), "mask": mask}


@pytest.fixture(scope="module")
def setup(tiny):
    experiment, state, _ = tiny
    model = experiment.model
    images = (np.random.default_rng(3).random((7, 16, 16, 1)) > 0.5).astype(np.float32)

    def run(size, **kwargs):
        return evaluate.evaluate(
            model, experiment.likelihood, state.variables, batches(images, size), **kwargs
        )

    return experiment, model, state, images, run


def test_the_bounds_equal_their_definition(setup):
    """Computes the bounds by their definition from the model's log-densities."""
    experiment, model, state, images, run = setup
    result = run(7, num_iw_samples=3, seed=5)

    @jax.jit
    def forward(key):
        noise = latent_noise(model, image_keys(key, np.arange(7)))
        return model.apply(state.variables, images, noise=noise)

    key, weights, nelbos = jax.random.key(5), [], []
    for k in range(3):
        out = forward(jax.random.fold_in(key, k))
        log_likelihood = np.asarray(experiment.likelihood(out.logits).log_prob(images), np.float64)
        weights.append(log_likelihood + out.log_p - out.log_q)
        nelbos.append(np.asarray(out.kl).sum(1) - log_likelihood)
    expected = -(logsumexp(np.stack(weights), axis=0) - np.log(3)).mean()
    np.testing.assert_allclose(result["neg_log_p"], expected, rtol=1e-5)
    np.testing.assert_allclose(result["nelbo"], np.mean(nelbos), rtol=1e-5)
    np.testing.assert_allclose(result["bits_per_dim"], expected / (256 * np.log(2)), rtol=1e-5)
    np.testing.assert_allclose(sum(result["kl_group"]), result["kl"], rtol=1e-5)


def test_the_result_does_not_depend_on_batch_size_and_padding(setup):
    *_, run = setup
    results = [run(size, num_iw_samples=2) for size in (7, 4)]
    assert [r["num_examples"] for r in results] == [7, 7]
    for name in ("nelbo", "neg_log_p"):
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5)


def test_masked_examples_do_not_change_the_result(setup):
    experiment, model, state, images, _ = setup
    batch = next(batches(images[:4], 4))

    def nelbo(batch):
        result = evaluate.evaluate(model, experiment.likelihood, state.variables, [batch])
        return result["nelbo"]

    masked = {**batch, "mask": np.array([True, True, False, False])}
    garbage = {**masked, "image": batch["image"].copy()}
    garbage["image"][2:] = np.nan
    assert nelbo(masked) == nelbo(garbage) != nelbo(batch)


def test_more_posterior_draws_give_a_tighter_bound(setup):
    *_, run = setup
    one, many = run(7, num_iw_samples=1), run(7, num_iw_samples=20)
    assert many["neg_log_p"] < one["neg_log_p"]
    assert many["neg_log_p"] < many["nelbo"]


def test_progress_includes_the_draws_within_a_batch(setup):
    *_, run = setup
    told = []
    run(4, num_iw_samples=4, progress=told.append)
    assert told == [0, 1, 2, 3, 4, 4, 4, 5, 6, 7]


def test_no_examples_and_no_draws_are_errors(setup):
    experiment, model, state, _, run = setup
    with pytest.raises(ValueError, match="num_iw_samples must be at least 1"):
        run(7, num_iw_samples=0)
    with pytest.raises(ValueError, match="no example"):
        evaluate.evaluate(model, experiment.likelihood, state.variables, [])


def test_bits_of_a_density_are_not_reported_as_bits_per_dimension(undocumented):
    """For uniform noise of 256 values, a Gaussian density has 1 bit per dimension instead of 8."""
    images = likelihoods.make("gaussian", np.zeros((1, 4, 4, 2), np.float32))
    sums = {"reconstruction": 16 * np.log(2), "kl": np.zeros(2), "neg_log_p": 8 * np.log(2)}
    result = {"split": "test", "step": 0, **evaluate._summary(sums, 1, 5, images)}
    rates = {name: value for name, value in result.items() if "bits" in name}
    assert rates == {"nelbo_density_bits_per_dim": 1.0, "density_bits_per_dim": 0.5}
    assert not undocumented(result)
    said = evaluate._report(result).splitlines()
    assert all("a density on [-1, 1]: not comparable" in line for line in said[1:])


def test_held_out_evaluation_is_deterministic(tiny):
    experiment, state, _ = tiny
    held_out = evaluate.HeldOutEvaluator(experiment, max_examples=7)
    first, again = held_out(state.variables), held_out(state.variables)
    assert held_out.split == "test"  # the digits have no other
    assert first == again and all(map(np.isfinite, first.values()))
    assert set(first) == {"nelbo", "reconstruction", "kl", "nelbo_bits_per_dim"}
    np.testing.assert_allclose(first["nelbo"], first["reconstruction"] + first["kl"])


def test_batches_are_not_larger_than_the_number_of_examples(tiny, monkeypatch):
    experiment, state, _ = tiny
    sizes, original = [], pipeline.eval_batches

    def counted(*args, **kwargs):
        for batch in original(*args, **kwargs):
            sizes.append(len(batch["mask"]))
            yield batch

    monkeypatch.setattr(pipeline, "eval_batches", counted)
    assert experiment.evaluation.batch_size > 7
    evaluate.HeldOutEvaluator(experiment, max_examples=7)(state.variables)
    assert sizes == [7]


def test_held_out_evaluation_can_be_stopped(tiny):
    experiment, state, _ = tiny
    held_out, asked = evaluate.HeldOutEvaluator(experiment, max_examples=200), []

    def stopped():
        asked.append(len(asked))
        return len(asked) == 2  # of four batches

    assert held_out(state.variables, stopped) is None
    assert len(asked) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_evaluation_and_writes_nothing(
    tiny, tmp_path, monkeypatch, capsys, number
):
    experiment, state, _ = tiny
    run = partial(evaluate.evaluate_run, tmp_path, experiment, Snapshot(0, state.variables))
    run = partial(run, split="test", max_examples=200, batch_size=64, seed=0)
    read, original = [], pipeline.eval_batches

    def interrupted(*args, **kwargs):
        for batch in original(*args, **kwargs):
            read.append(batch)
            if len(read) == 2:
                signal.raise_signal(number)
            yield batch

    monkeypatch.setattr(pipeline, "eval_batches", interrupted)
    with pytest.raises(Interrupted, match="nothing was written") as caught:
        run(num_iw_samples=1)
    assert caught.value.signal_number == number and len(read) == 2
    assert f"received {signal.Signals(number).name}: stopping" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*"))


def test_a_result_that_cannot_be_written_is_printed(tiny, tmp_path, capsys):
    experiment, state, _ = tiny
    (tmp_path / "eval").write_text("no folder")
    options = dict(split="test", num_iw_samples=1, max_examples=7, batch_size=7, seed=0)
    snapshot = Snapshot(0, state.variables)
    result = evaluate.evaluate_run(tmp_path, experiment, snapshot, **options)
    printed = capsys.readouterr()
    assert f"NELBO {result['nelbo']:.4f} nats" in printed.out and "written" not in printed.out
    assert printed.err.splitlines()[-1].startswith("warning: the result is not saved: ")
