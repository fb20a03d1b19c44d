"""Batch norm and swish, compared with JAX's derivatives in float64."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.ops.portable import Portable
from nvae_jax.ops.portable.normalization import affine, coefficients, swish
from tests.ops.gradients import with_gradients
from tests.ops.implementations import CPU, NATIVE

EPSILON = 1e-5


def reference(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    centred = x - x.mean(axes, keepdims=True)
    inverse = 1 / jnp.sqrt(jnp.square(centred).mean(axes, keepdims=True) + EPSILON)
    one = (1,) * (x.ndim - 1)
    return centred * inverse * scale.reshape(*one, -1) + bias.reshape(*one, -1)


def arrays(dtype=np.float64, shape=(3, 4, 5, 6)):
    """x with means far from 0 and spreads far from 1, scale, bias, and the output's gradient."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * np.arange(1, 7) + 10 * rng.normal(size=6)
    return [a.astype(dtype) for a in (x, rng.normal(size=6), rng.normal(size=6))], rng.normal(
        size=shape
    ).astype(dtype)


def ours(*given, ops, activation=None):
    return ops.batch_norm(*given, EPSILON, activation=activation)[0]


@pytest.mark.parametrize("ops", [CPU, NATIVE])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["plain", "remat"])
def test_values_and_gradients_equal_those_in_float64(wrap, ops):
    with jax.enable_x64(True):
        expected = with_gradients(reference, *arrays())
    function = wrap(partial(ours, ops=ops))
    found = with_gradients(function, *arrays(np.float32))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("ops", [NATIVE])
def test_several_blocks_of_rows_and_a_large_mean_give_the_same_values(ops):
    # Several blocks of rows, the last of another size, and a mean that is large beside the spread.
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 30, 31, 70)) + 100
    scale, bias, g = rng.normal(size=70), rng.normal(size=70), rng.normal(size=x.shape)
    with jax.enable_x64(True):
        expected = with_gradients(reference, (x, scale, bias), g)
    *given, g = (a.astype(np.float32) for a in (x, scale, bias, g))
    found = with_gradients(partial(ours, ops=ops), given, g)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("ops", [CPU, NATIVE])
@pytest.mark.parametrize("activation", [swish, nn.elu])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["plain", "remat"])
def test_a_fused_activation_gives_the_same_values_and_gradients(wrap, activation, ops):
    # Numbers of channels that fill no vector, and gates close to 0 and 1.
    (x, scale, bias), g = arrays(shape=(5, 7, 31, 6))
    x, g = (np.concatenate([a] * 7, axis=-1) for a in (x, g))
    given = x, np.tile(scale, 7) * np.logspace(-1, 2, 42), np.tile(bias, 7)
    with jax.enable_x64(True):
        expected = with_gradients(lambda *a: activation(reference(*a)), given, g)
    *given, g = (a.astype(np.float32) for a in (*given, g))
    function = wrap(lambda *a: ops.batch_norm(*a, EPSILON, activation=activation)[0])
    found = with_gradients(function, given, g)
    for a, b in zip(map(np.asarray, found), map(np.asarray, expected), strict=True):
        # Each channel is compared alone, since they differ by orders of magnitude.
        axes = tuple(range(b.ndim - 1))
        assert (np.abs(a - b).max(axes) <= 2e-4 * np.abs(b).max(axes) + 1e-4).all()


@pytest.mark.parametrize("ops", [NATIVE])
def test_swish_is_finite_far_from_zero(ops):
    x = jnp.array([-1.0, 1.0]).repeat(20)[:, None]
    for size in (50.0, 1e3, 1e30):
        y = ops.batch_norm(x, jnp.array([size]), jnp.zeros(1), 0.0, activation=swish)[0]
        np.testing.assert_allclose(y[:20], 0.0, atol=1e-15)
        np.testing.assert_allclose(y[20:], size, rtol=1e-6)


@pytest.mark.parametrize("ops", [CPU, NATIVE])
def test_swish_is_exact_to_the_last_bits(ops):
    # Of batches of -1 and 1 batch norm makes -scale and scale, without rounding.
    x, scale = np.array([-1.0, 1.0]).repeat(20)[:, None].repeat(800, 1), np.linspace(0.1, 80, 800)
    x, scale = x.astype(np.float32), scale.astype(np.float32)
    found = ops.batch_norm(x, scale, np.zeros_like(scale), 0.0, activation=swish)[0]
    normal = x.astype(np.float64) * scale
    np.testing.assert_allclose(found, normal / (1 + np.exp(-normal)), rtol=4e-7)


@pytest.mark.parametrize("ops", [CPU, NATIVE])
def test_long_sums_have_small_rounding_errors(ops):
    # Rounding errors of a zero gradient would be enlarged by the optimiser.
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(2, 16, 32, 32, 3)) + 1).astype(np.float32)
    given = [x, *np.float32([[1.5, 1.0, 0.5], [0.0, 1.0, -1.0]])]
    with jax.enable_x64(True):
        wide = [np.float64(a) for a in given]
        expected = np.asarray(
            with_gradients(lambda *a: swish(reference(*a)), wide, np.float64(g))[3]
        )
    function = partial(ours, ops=ops, activation=swish)
    found = with_gradients(function, given, g)
    dx, dbias = (np.asarray(found[i], np.float64) for i in (1, 3))
    total = np.abs(g).sum((0, 1, 2))
    assert (np.abs(dbias - expected) <= 1e-7 * total).all()
    assert (np.abs(dx.sum((0, 1, 2))) <= 1e-7 * total).all()


@pytest.mark.parametrize("ops", [CPU, NATIVE])
def test_no_gradient_flows_through_the_returned_statistics(ops):
    given, _ = arrays(np.float32)
    _, mean, var = ops.batch_norm(*given, EPSILON)
    np.testing.assert_allclose(mean, given[0].mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(var, given[0].var((0, 1, 2)), rtol=1e-4)
    gradient = jax.grad(lambda x: sum(ops.batch_norm(x, *given[1:], EPSILON)[1:]).sum())(given[0])
    assert not np.asarray(gradient).any()
    y = affine(given[0], *coefficients(*given[1:], mean, var, EPSILON))
    expected = ours(*given, ops=ops)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ops", [CPU, NATIVE])
def test_a_center_near_the_mean_avoids_cancellation(ops):
    rng = np.random.default_rng(0)
    x, ones = rng.normal(size=(4, 8, 8, 6)) + 1000, np.ones(6, np.float32)
    center = np.full(6, 1000.3, np.float32)
    found = ops.batch_norm(np.float32(x), ones, ones, EPSILON, center=center)
    x = np.float32(x).astype(np.float64)
    np.testing.assert_allclose(found[1], x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found[2], x.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("ops", [CPU, NATIVE])
def test_under_vmap_each_group_has_its_own_statistics(ops):
    given, g = arrays(np.float32, (2, 4, 4, 5, 6))
    over = jax.vmap(partial(ours, ops=ops), in_axes=(0, None, None))
    found = with_gradients(over, given, g)
    expected = with_gradients(jax.vmap(reference, in_axes=(0, None, None)), given, g)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_bfloat16_inputs_are_normalized_with_float32_statistics():
    (x, scale, bias), g = arrays(np.float32)
    x, g = jnp.asarray(x, jnp.bfloat16), jnp.asarray(g, jnp.bfloat16)
    found = with_gradients(partial(ours, ops=Portable()), (x, scale, bias), g)
    assert [a.dtype for a in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    exact = (x.astype(jnp.float32), scale, bias), g.astype(jnp.float32)
    for a, b in zip(found, with_gradients(reference, *exact), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=1e-2 * np.abs(b).max())
    assert Portable().batch_norm(x, scale, bias, EPSILON)[1].dtype == jnp.float32


def test_the_backward_pass_of_swish_stores_only_its_input():
    x, g = np.linspace(-8, 8, 101), np.random.default_rng(0).normal(size=101)
    with jax.enable_x64(True):
        expected = with_gradients(lambda x: x * jax.nn.sigmoid(x), (x,), g)
    found = with_gradients(swish, (x.astype(np.float32),), g.astype(np.float32))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    _, pullback = jax.vjp(swish, jnp.asarray(x, jnp.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(pullback)) == x.size
