"""Splitting stacked arrays into entries, and stacking the gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.implementations import CPU, GPU, NATIVE

RNG = np.random.default_rng(0)
# An entry of the last array is larger than the part that a thread copies at once.
TREE = {
    "a": jnp.asarray(RNG.normal(size=(3, 2, 5)), jnp.float32),
    "b": [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in [(3,), (3, 50, 1000)]],
}


def by_hand(length):
    return [jax.tree.map(lambda a, i=i: a[i], TREE) for i in range(length)]


@pytest.mark.parametrize("ops", [CPU, NATIVE, GPU])
def test_unstack_returns_the_entries_of_every_array(ops):
    entries = jax.jit(ops.unstack, static_argnums=1)(TREE, 3)
    chex.assert_trees_all_equal(entries, by_hand(3))


@pytest.mark.parametrize("ops", [CPU, NATIVE, GPU])
def test_gradients_of_entries_are_stacked_again(ops):
    weights = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), jnp.float32), by_hand(3))

    def total(tree):
        entries = ops.unstack(tree, 3)
        products = jax.tree.map(lambda a, w: jnp.sum(a**2 * w), entries, weights)
        return sum(jax.tree.leaves(products))

    expected = jax.tree.map(lambda a, *w: 2 * a * jnp.stack(w), TREE, *weights)
    chex.assert_trees_all_close(jax.jit(jax.grad(total))(TREE), expected, rtol=1e-6)


@pytest.mark.parametrize("ops", [CPU, NATIVE, GPU])
def test_integers_and_empty_trees_can_be_unstacked(ops):
    tree = {"number": jnp.arange(6).reshape(2, 3), "none": None}
    entries = ops.unstack(tree, 2)
    np.testing.assert_array_equal(entries[1]["number"], [3, 4, 5])
    assert ops.unstack({}, 2) == [{}, {}]
