"""Taking stacks apart, and putting their gradients together."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.ops.stacks import Entry, entry, taken, unstack
from tests.ops.implementations import NATIVE, NEEDS_COMPILER, XLA

RNG = np.random.default_rng(0)
# One entry of the last is more than what a thread copies at once.
TREE = {
    "a": jnp.asarray(RNG.normal(size=(3, 2, 5)), jnp.float32),
    "b": [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in [(3,), (3, 50, 1000)]],
}


def by_hand(length):
    return [jax.tree.map(lambda a, i=i: a[i], TREE) for i in range(length)]


@pytest.mark.parametrize("implementation", [XLA, NATIVE])
def test_entries(implementation):
    entries = jax.jit(unstack, static_argnums=(1, 2))(TREE, 3, implementation)
    chex.assert_trees_all_equal(entries, by_hand(3))


@pytest.mark.parametrize("implementation", [XLA, NATIVE])
def test_gradients(implementation):
    weights = jax.tree.map(lambda a: jnp.asarray(RNG.normal(size=a.shape), jnp.float32), by_hand(3))

    def total(tree):
        entries = unstack(tree, 3, implementation)
        products = jax.tree.map(lambda a, w: jnp.sum(a**2 * w), entries, weights)
        return sum(jax.tree.leaves(products))

    expected = jax.tree.map(lambda a, *w: 2 * a * jnp.stack(w), TREE, *weights)
    chex.assert_trees_all_close(jax.jit(jax.grad(total))(TREE), expected, rtol=1e-6)


@pytest.mark.parametrize("implementation", [XLA, NATIVE])
def test_other_dtypes_and_trees_without_arrays(implementation):
    tree = {"number": jnp.arange(6).reshape(2, 3), "none": None}
    entries = unstack(tree, 2, implementation)
    np.testing.assert_array_equal(entries[1]["number"], [3, 4, 5])
    assert unstack({}, 2, implementation) == [{}, {}]


@pytest.mark.parametrize("implementation", [NATIVE])
def test_late_entries_stay_in_their_stacks_until_they_are_taken(implementation):
    entries = unstack(TREE, 3, implementation, late=lambda stack: stack.ndim == 3)
    for index, tree in enumerate(entries):
        kept = [tree["a"], tree["b"][1]]
        assert all(isinstance(part, Entry) and part.index == index for part in kept)
        assert kept[0].stack is TREE["a"]
        assert isinstance(tree["b"][0], jax.Array)
        found = jax.tree.map(taken, tree, is_leaf=lambda node: isinstance(node, Entry))
        chex.assert_trees_all_equal(found, by_hand(3)[index])


@NEEDS_COMPILER
def test_an_entry_has_the_gradient_of_its_stack():
    stack = TREE["a"]

    @jax.jit
    def total(stack, index):
        return jnp.sum(taken(Entry(stack, index)) ** 2)

    expected = jnp.zeros_like(stack).at[1].set(2 * stack[1])
    np.testing.assert_allclose(jax.grad(total)(stack, 1), expected, rtol=1e-6)


@NEEDS_COMPILER
def test_arrays_and_entries_are_taken_for_each_other():
    array = TREE["a"][0]
    assert taken(array) is array
    np.testing.assert_array_equal(taken(entry(array)), array)
    assert entry(entry(array)).stack.shape == (1, *array.shape)
    assert entry(array).astype(jnp.float32).stack.shape == (1, *array.shape)
    np.testing.assert_array_equal(entry(array).astype(jnp.bfloat16), array.astype(jnp.bfloat16))
