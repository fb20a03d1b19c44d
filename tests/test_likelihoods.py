from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nvae_jax import likelihoods
from nvae_jax.distributions.logistic_mixture import LogisticMixture
from nvae_jax.distributions.normal import Normal


def random_logits(channels, batch=2, size=4, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(scale * rng.normal(size=(batch, size, size, channels)), jnp.float32)


def call(method, make, logits, *arguments):
    """A method of the distribution that `make` makes of logits, as one compiled program."""
    return jax.jit(lambda logits, *given: getattr(make(logits), method)(*given))(logits, *arguments)


def mixture(**options):
    return partial(likelihoods.make, "logistic_mixture", **options)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize("num_bits", [2, 3])
def test_logistic_mixture_sums_to_one_over_all_colours(num_bits):
    levels = np.arange(2**num_bits) / (2**num_bits - 1)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 1, 1, 3)
    logits = jnp.broadcast_to(random_logits(30, 1, 1), (len(grid), 1, 1, 30))
    log_prob = call("log_prob", mixture(num_bits=num_bits), logits, grid)
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)).sum(), 1.0, rtol=1e-4)


def one_component(means, log_scales, coefficients=(0.0, 0.0, 0.0)):
    """Logits (1, 1, 1, 10) of a single logistic; coefficients are given after the tanh."""
    slots = np.stack([means, log_scales, np.arctanh(coefficients)], -1)
    flat = np.concatenate([[0.0], slots.reshape(-1)])
    return jnp.asarray(flat, jnp.float32)[None, None, None]


def test_log_scales_have_a_floor():
    x = jnp.full((1, 1, 1, 3), 128 / 255)
    means = np.full(3, 2 * 128 / 255 - 1)
    at_floor, below = (
        call("log_prob_pixels", LogisticMixture, one_component(means, np.full(3, scale)), x)
        for scale in (-7.0, -20.0)
    )
    np.testing.assert_allclose(below, at_floor)
    mass = sigmoid(np.exp(7) / 255) - sigmoid(-np.exp(7) / 255)
    np.testing.assert_allclose(at_floor, 3 * np.log(mass), rtol=1e-4)


def test_far_from_every_mean_the_density_replaces_the_mass_of_the_bin():
    """Where a bin's mass vanishes in float32, it is the density at its centre times its width."""
    x = jnp.full((1, 1, 1, 3), 0.25)
    centred = np.exp(5.0) * (2 * 0.25 - 1 - 0.9)
    density = centred + 5.0 - 2 * np.logaddexp(0, centred)
    logits = one_component(np.full(3, 0.9), np.full(3, -5.0))
    value = call("log_prob_pixels", LogisticMixture, logits, x)
    np.testing.assert_allclose(value, 3 * (density - np.log(255 / 2)), rtol=1e-5)


@pytest.mark.parametrize(("x", "sign"), [(0.0, 1), (1.0, -1)])
def test_outermost_bins_reach_to_infinity(x, sign):
    image = jnp.full((1, 1, 1, 3), x)
    edge = sign * (2 * x - 1 + sign / 255 - 0.1) / np.exp(-1.0)
    logits = one_component(np.full(3, 0.1), np.full(3, -1.0))
    value = call("log_prob_pixels", LogisticMixture, logits, image)
    np.testing.assert_allclose(value, 3 * np.log(sigmoid(edge)), rtol=1e-5)


def test_green_and_blue_depend_on_the_channels_before():
    logits = one_component([0.1, -0.2, 0.3], np.full(3, -7.0), (0.5, -0.25, 0.75))
    image = np.asarray(LogisticMixture(logits).mean())[0, 0, 0] * 2 - 1
    green = -0.2 + 0.5 * 0.1
    np.testing.assert_allclose(
        image, [0.1, green, 0.3 - 0.25 * 0.1 + 0.75 * green], rtol=1e-5, atol=1e-6
    )


def test_mixture_sample_frequencies_match_the_probabilities():
    logits = jnp.broadcast_to(random_logits(30, 1, 1, scale=2.0), (20_000, 1, 1, 30))
    samples = np.asarray(call("sample", mixture(num_bits=2), logits, jax.random.key(0)))
    levels = np.round(samples * 3)[:, 0, 0]
    for colour in ([0, 0, 0], [3, 3, 3], [0, 3, 3], [1, 2, 3], [3, 0, 0], [3, 3, 0]):
        x = jnp.asarray(np.array(colour) / 3, jnp.float32)[None, None, None]
        expected = np.exp(call("log_prob", mixture(num_bits=2), logits[:1], x))
        np.testing.assert_allclose((levels == colour).all(-1).mean(), expected[0], atol=0.012)


def test_a_lower_temperature_gives_narrower_samples():
    logits = jnp.broadcast_to(one_component(np.zeros(3), np.full(3, -2.0)), (5000, 1, 1, 10))
    key = jax.random.key(0)
    warm, cold = (np.std(call("sample", mixture(), logits, key, t)) for t in (1.0, 0.5))
    np.testing.assert_allclose(cold / warm, 0.5, rtol=0.05)


def grey(logits, **options):
    return mixture(channels=1, **options)(logits)


def grey_levels(num_bits):
    """All values of a grey pixel, as images (2**num_bits, 1, 1, 1)."""
    return (np.arange(2**num_bits) / (2**num_bits - 1)).astype(np.float32)[:, None, None, None]


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("num_bits", [1, 2, 5, 8])
def test_grey_mixture_sums_to_one_over_all_values(num_bits, scale):
    levels = grey_levels(num_bits)
    logits = jnp.broadcast_to(random_logits(30, 1, 1, scale), (len(levels), 1, 1, 30))
    log_prob = call("log_prob", partial(grey, num_bits=num_bits), logits, levels)
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)).sum(), 1.0, rtol=1e-3)


@pytest.mark.parametrize("log_scale", [0.0, -4.0, -20.0])  # the last one is below the floor
@pytest.mark.parametrize("num_bits", [10, 12, 16])
def test_a_grey_mixture_of_more_than_eight_bits_is_exact_in_float32(num_bits, log_scale):
    """All values sum to one, and each log-probability is that of sums in float64."""
    levels, logits = grey_levels(num_bits), random_logits(30, 1, 1).at[..., 20:].add(log_scale)
    tiled = jnp.broadcast_to(logits, (len(levels), 1, 1, 30))
    log_prob = call("log_prob", partial(grey, num_bits=num_bits), tiled, levels)
    log_prob = np.asarray(log_prob, np.float64)
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, atol=1e-4)
    weights, means, scales = np.split(np.asarray(logits[0, 0, 0], np.float64), 3)
    scales = np.exp(np.maximum(scales, -7 - np.log(2) * (num_bits - 8)))
    inner = (2 * np.arange(2**num_bits - 1) + 1) / (2**num_bits - 1) - 1
    edges = (np.concatenate([[-np.inf], inner, [np.inf]])[:, None] - means) / scales
    sign = np.where(edges[:-1] > 0, -1, 1)  # away from 1, where float64 is coarse
    with np.errstate(over="ignore"):
        mass = np.abs(sigmoid(sign * edges[1:]) - sigmoid(sign * edges[:-1]))
    expected = np.log(np.maximum(mass @ (np.exp(weights) / np.exp(weights).sum()), 1e-30))
    likely = expected > -20  # nats; the values left out have a negligible probability
    # x has a relative error of 2e-8: beside the narrowest scales, a fiftieth of them.
    tolerance = 1e-5 if log_scale > -20 else 0.1
    np.testing.assert_allclose(log_prob[likely], expected[likely], atol=tolerance)


@pytest.mark.parametrize("num_bits", [8, 12])
def test_colours_of_more_than_eight_bits_have_every_value(num_bits):
    """With 8 bits, the published likelihood treats the two highest values as one; with more, all
    values differ."""
    levels = grey_levels(num_bits)
    same = one_component(np.full(3, 0.9), np.full(3, -2.0))
    tiled = jnp.broadcast_to(same, (len(levels), 1, 1, 10))
    make = partial(LogisticMixture, num_bits=num_bits)
    log_prob = call("log_prob_pixels", make, tiled, np.tile(levels, 3))
    total = np.exp(np.asarray(log_prob, np.float64) / 3).sum()
    assert total > 1.05 if num_bits == 8 else abs(total - 1) < 1e-5


def test_a_grey_mixture_equals_one_computed_by_hand():
    """Two logistics and 5 bits, for a value in the middle and the two at the ends."""
    logits = np.array([0.0, np.log(3.0), -0.2, 0.4, -1.0, -2.0], np.float32)
    x = np.array([0.0, 20 / 31, 1.0], np.float32)[:, None, None, None]
    edges = np.array(
        [[-np.inf, -1 + 1 / 31], [9 / 31 - 1 / 31, 9 / 31 + 1 / 31], [30 / 31, np.inf]]
    )
    cdf = sigmoid((edges[..., None] - [-0.2, 0.4]) / np.exp([-1.0, -2.0]))
    expected = np.log((cdf[:, 1] - cdf[:, 0]) @ [0.25, 0.75])
    tiled = jnp.broadcast_to(logits, (3, 1, 1, 6))
    found = call("log_prob", partial(grey, num_bits=5), tiled, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_grey_sample_frequencies_match_the_probabilities():
    logits = jnp.broadcast_to(random_logits(30, 1, 1, scale=2.0), (20_000, 1, 1, 30))
    make = partial(grey, num_bits=2)
    samples = np.asarray(call("sample", make, logits, jax.random.key(0)))
    assert samples.shape == (20_000, 1, 1, 1) and 0 <= samples.min() and samples.max() <= 1
    found = np.bincount(np.round(samples * 3).astype(int).ravel(), minlength=4) / len(samples)
    expected = np.exp(call("log_prob", make, logits[:4], grey_levels(2)))
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_a_grey_mixture_has_the_right_mean_and_shapes():
    logits = random_logits(30)
    distribution = grey(logits)
    weights = np.exp(logits[..., :10]) / np.exp(logits[..., :10]).sum(-1, keepdims=True)
    mean = np.clip((weights * logits[..., 10:20]).sum(-1, keepdims=True), -1, 1)
    np.testing.assert_allclose(distribution.mean(), (mean + 1) / 2, rtol=1e-5)
    assert distribution.num_dims == 16 and distribution.log_prob(mean).shape == (2,)
    assert likelihoods.make("logistic_mixture", logits).num_dims == 48  # RGB is the default
    assert likelihoods.num_params("logistic_mixture", 1) == 30
    assert likelihoods.default(binary=False) == "logistic_mixture"


def test_grey_gradients_are_finite_far_from_every_mean():
    gradient = jax.jit(jax.grad(lambda logits: grey(logits).log_prob(grey_levels(8)).sum()))
    for scale in (1.0, 30.0):
        assert np.isfinite(gradient(random_logits(30, 256, 1, scale))).all()


@pytest.mark.parametrize(("num_bits", "most"), [(5, 5.05), (8, 8.05), (12, 12.1)])
def test_the_best_grey_mixture_of_noise_reaches_its_entropy(num_bits, most):
    """No model can encode uniform noise of b bits with less than b bits per value."""
    levels, optimizer = grey_levels(num_bits), optax.adam(0.05)

    def bits(logits):
        tiled = jnp.broadcast_to(logits, (len(levels), 1, 1, 30))
        nats = -grey(tiled, num_bits=num_bits).log_prob(levels).mean()
        return likelihoods.bits_per_dim(nats, 1)

    def step(carry, _):
        updates, state = optimizer.update(jax.grad(bits)(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    start = random_logits(30, 1, 1)
    logits, _ = jax.lax.scan(step, (start, optimizer.init(start)), length=300)[0]
    assert num_bits - 1e-3 <= bits(logits) < most < bits(start)


def test_bernoulli_counts_the_central_28_pixels_of_32():
    logits = random_logits(1, size=32)
    x = (np.random.default_rng(1).random((2, 32, 32, 1)) > 0.5).astype(np.float32)
    distribution = likelihoods.make("bernoulli", logits)
    p = sigmoid(logits)
    by_hand = np.log(np.where(x == 1, p, 1 - p))[:, 2:30, 2:30].sum((1, 2, 3))
    np.testing.assert_allclose(distribution.log_prob(x), by_hand, rtol=1e-5)
    assert distribution.num_dims == 784
    np.testing.assert_allclose(distribution.mean(), p, rtol=1e-4)


def test_bernoulli_sums_to_one():
    logits = random_logits(1, 1, 2)
    images = np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, -1).T.reshape(-1, 2, 2, 1)
    tiled = jnp.broadcast_to(logits, (16, 2, 2, 1))
    log_prob = likelihoods.make("bernoulli", tiled).log_prob(images.astype(np.float32))
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1.0, rtol=1e-5)


def test_gaussian_is_a_density_on_minus_one_to_one():
    logits = random_logits(6)
    x = np.random.default_rng(1).random((2, 4, 4, 3)).astype(np.float32)
    value = likelihoods.make("gaussian", logits).log_prob(x)
    m, s = np.split(np.asarray(logits, np.float64), 2, axis=-1)
    scale = np.exp(5 * np.tanh(s / 5)) + 0.01
    z = (2 * x - 1 - 5 * np.tanh(m / 5)) / scale
    by_hand = (-0.5 * z**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)).sum((1, 2, 3))
    np.testing.assert_allclose(value, by_hand, rtol=1e-5)


@pytest.mark.parametrize(("name", "channels"), [("bernoulli", 1), ("gaussian", 6)])
def test_samples_and_means_are_images(name, channels):
    distribution = likelihoods.make(name, random_logits(channels, scale=3.0))
    for image in (distribution.sample(jax.random.key(0)), distribution.mean()):
        assert image.shape == (2, 4, 4, max(channels // 2, 1))
        assert 0 <= image.min() and image.max() <= 1


def test_the_kl_of_two_normals_equals_its_integral():
    q, p = Normal(jnp.array(0.3), jnp.array(0.7)), Normal(jnp.array(-0.5), jnp.array(1.4))
    z = jnp.linspace(-8, 8, 20_001)
    integral = jnp.trapezoid(jnp.exp(q.log_prob(z)) * (q.log_prob(z) - p.log_prob(z)), z)
    np.testing.assert_allclose(q.kl(p), integral, rtol=1e-4)


def test_unsuitable_likelihoods_are_errors_that_name_them():
    with pytest.raises(ValueError, match="unknown likelihood 'poisson'; known: bernoulli, "):
        likelihoods.make("poisson", random_logits(1))
    with pytest.raises(ValueError, match="of 1 or 3 channels, not 2; .* bernoulli, gaussian"):
        likelihoods.num_params("logistic_mixture", 2)
    with pytest.raises(ValueError, match="'bernoulli' models values of up to 8 bits, but .*=12"):
        likelihoods.check_bits("bernoulli", 12)
    likelihoods.check_bits("logistic_mixture", 16)
