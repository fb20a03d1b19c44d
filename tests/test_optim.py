from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nvae_jax import optim
from nvae_jax.ops.portable import Portable
from nvae_jax.ops.portable.optimizer import with_small_concatenated
from tests.ops.implementations import GPU, NATIVE, PORTABLE


def settings(**keys):
    return optim.OptimizerSettings(**{"num_steps": 1000, "warmup_steps": 100, **keys})


def test_adamax_equals_one_computed_by_hand():
    rng = np.random.default_rng(0)
    p, m, u = rng.normal(size=5), np.zeros(5), np.zeros(5)
    optimizer = optim.adamax(settings(weight_decay=0.1, epsilon=0.01), 0.05)
    params = jnp.asarray(p, jnp.float32)
    state = optimizer.init(params)
    for t in range(1, 5):
        gradient = rng.normal(size=5)
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = params + updates
        g = gradient + 0.1 * p
        u = np.maximum(0.999 * u, np.abs(g) + 0.01)
        m = 0.9 * m + 0.1 * g
        p = p - 0.05 / (1 - 0.9**t) * m / u
        np.testing.assert_allclose(params, p, rtol=1e-5, atol=1e-6)


def parameters(seed):
    """Random parameters: some small, two larger than the part that a thread updates at once."""
    rng = np.random.default_rng(seed)
    shapes = {"b": (3,), "a": {"w": (70, 1000), "v": (5, 1)}, "c": (300, 300), "one": ()}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


@pytest.mark.parametrize("other", [NATIVE, GPU])
@pytest.mark.parametrize("keys", [{}, {"gradient_clip": 0.5}, {"weight_decay": 0.0}])
@pytest.mark.parametrize("learning_rate", [None, 0.05])
def test_fused_steps_equal_the_chain_of_transformations(other, keys, learning_rate):
    params = {ops: parameters(0) for ops in (Portable(), other)}
    optimizer = optim.adamax(settings(**keys), learning_rate)
    states = {ops: optimizer.init(params[ops]) for ops in params}
    step = jax.jit(lambda ops, *given: ops.optimizer_step(optimizer, *given), static_argnums=0)
    for i in range(4):
        gradients = parameters(i + 1)
        for ops in params:
            accept = jnp.array(i != 2)
            params[ops], states[ops] = step(ops, gradients, states[ops], params[ops], accept)
        for trees in (params, states):
            chex.assert_trees_all_close(*trees.values(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ops", [PORTABLE, NATIVE, GPU])
def test_a_skipped_step_changes_nothing(ops):
    optimizer = optim.adamax(settings(warmup_steps=3, gradient_clip=1.0))
    params, broken = parameters(0), jax.tree.map(lambda p: jnp.nan * p, parameters(0))
    before = params, optimizer.init(params)
    step = jax.jit(partial(ops.optimizer_step, optimizer))
    params, state = step(parameters(1), *reversed(before), jnp.array(True))
    after = step(broken, state, params, jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, after, (params, state))


@pytest.mark.parametrize("ops", [PORTABLE, NATIVE])
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_the_global_norm_is_exact_and_not_finite_for_nonfinite_gradients(ops, broken):
    gradients = parameters(0)
    exact = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(ops.global_norm(gradients), exact, rtol=1e-6)
    gradients["c"] = gradients["c"].at[299, 299].set(broken)
    assert not np.isfinite(ops.global_norm(gradients))


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (50, 5e-3), (100, 1e-2), (550, (1e-2 + 1e-4) / 2), (1000, 1e-4), (2000, 1e-4)],
)
def test_the_learning_rate_follows_the_schedule(step, rate):
    np.testing.assert_allclose(
        optim.learning_rate_schedule(settings())(step), rate, rtol=1e-5, atol=1e-9
    )


def test_the_schedule_works_without_warm_up_and_when_shorter_than_it():
    assert optim.learning_rate_schedule(settings(warmup_steps=0))(0) == pytest.approx(1e-2)
    short = optim.learning_rate_schedule(settings(num_steps=10))
    assert short(5) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"learning_rate": 0.0}, "learning_rate must be positive"), ({"warmup_steps": -1}, "warmup")],
)
def test_invalid_settings_are_errors_that_name_them(keys, message):
    with pytest.raises(ValueError, match=message):
        settings(**keys)


def test_concatenating_small_arrays_changes_no_update():
    rng = np.random.default_rng(0)
    shapes = {"a": {"kernel": (3, 5), "bias": (2,)}, "b": (4, 4), "c": ()}

    def draw():
        normal = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
        return jax.tree.map(normal, shapes, is_leaf=lambda shape: isinstance(shape, tuple))

    plain = optax.chain(optax.add_decayed_weights(0.1), optax.scale_by_adamax())
    concatenated = with_small_concatenated(plain, limit=16)
    params = draw()
    states = [optimizer.init(params) for optimizer in (plain, concatenated)]
    assert set(states[1][1].mu) == {"b", "small"}
    for _ in range(3):
        gradients = draw()
        expected, states[0] = plain.update(gradients, states[0], params)
        found, states[1] = concatenated.update(gradients, states[1], params)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(Portable().global_norm(gradients), norm, rtol=1e-6)
