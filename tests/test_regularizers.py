from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax import regularizers
from nvae_jax.models.kernels import effective_kernels
from nvae_jax.ops.cpu import Native
from nvae_jax.ops.portable import Portable
from tests.ops.implementations import NATIVE, NEEDS_COMPILER, PORTABLE

RNG = np.random.default_rng(0)
KERNELS = {
    "a": {"kernel": RNG.normal(size=(3, 3, 4, 8)).astype(np.float32)},
    "stack": {"kernel": RNG.normal(size=(5, 3, 3, 4, 8)).astype(np.float32)},
    "depthwise": {"kernel": RNG.normal(size=(5, 5, 1, 6)).astype(np.float32)},
    "one": {"kernel": RNG.normal(size=(1, 1, 4, 2)).astype(np.float32)},
}


def exact():
    """The sum of largest singular values, by SVD of the (out × rest) matrices."""
    total = 0.0
    for entry in KERNELS.values():
        kernel = entry["kernel"]
        kernel = kernel if kernel.ndim == 5 else kernel[None]
        for k in kernel:
            matrix = k.transpose(3, 2, 0, 1).reshape(k.shape[-1], -1)
            total += np.linalg.svd(matrix, compute_uv=False)[0]
    return total


def start():
    return regularizers.init_spectral_vectors(jax.random.key(0), KERNELS)


def penalties(model):
    """A compiled function from parameters, vectors and a number of rounds to the penalty."""

    def penalty(params, vectors, rounds):
        kernels = effective_kernels(model, params)
        return Portable().spectral_penalty(kernels, vectors, rounds)[0]

    return jax.jit(penalty)


BY_BOTH = pytest.mark.parametrize("ops", [PORTABLE, NATIVE])


@BY_BOTH
def test_power_iteration_converges_to_the_largest_singular_values(ops):
    penalty, *_ = ops.spectral_penalty(KERNELS, start(), 300)
    np.testing.assert_allclose(penalty, exact(), rtol=1e-4)


@BY_BOTH
def test_returned_vectors_continue_the_power_iteration(ops):
    """Two calls of 3 and 4 rounds equal one call of 7 rounds."""
    *_, vectors = ops.spectral_penalty(KERNELS, start(), 3)
    twice, *_ = ops.spectral_penalty(KERNELS, vectors, 4)
    once, *_ = ops.spectral_penalty(KERNELS, start(), 7)
    np.testing.assert_allclose(twice, once, rtol=1e-6)
    first, *_ = ops.spectral_penalty(KERNELS, start(), 1)
    assert first < once < exact() * (1 + 1e-6)


def test_training_starts_with_vectors_that_are_nearly_converged(tiny):
    experiment, state, _ = tiny
    penalty = penalties(experiment.model)
    kernels = jax.eval_shape(partial(effective_kernels, experiment.model), state.params)
    random = regularizers.init_spectral_vectors(jax.random.key(0), kernels)
    converged = penalty(state.params, random, 400)
    np.testing.assert_allclose(
        penalty(state.params, state.spectral, regularizers.ROUNDS), converged, rtol=2e-3
    )
    assert penalty(state.params, random, regularizers.ROUNDS) < 0.99 * converged


def test_kernels_of_equal_shape_share_an_array_of_vectors():
    shapes = {name: v.shape for name, v in start().items()}
    assert shapes == {"36x8": (6, 8), "25x6": (1, 6), "4x2": (1, 2)}


@BY_BOTH
def test_the_gradient_is_the_outer_product_of_the_singular_vectors(ops):
    kernel = {"one": KERNELS["one"]}
    vectors = regularizers.init_spectral_vectors(jax.random.key(0), kernel)
    gradient = jax.grad(lambda k: ops.spectral_penalty(k, vectors, 200)[0])(kernel)
    matrix = KERNELS["one"]["kernel"][0, 0]
    u, _, vt = np.linalg.svd(matrix)
    expected = np.outer(u[:, 0], vt[0])
    np.testing.assert_allclose(gradient["one"]["kernel"][0, 0], expected, rtol=1e-3, atol=1e-5)


@NEEDS_COMPILER
@pytest.mark.parametrize("rounds", [1, 4])
def test_both_implementations_have_the_same_gradients_and_vectors(rounds):
    def loss(kernels, ops):
        penalty, used, vectors = ops.spectral_penalty(kernels, start(), rounds)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(used))
        return 3.0 * penalty + squares, (penalty, vectors)

    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    chex.assert_trees_all_close(
        step(KERNELS, Native()), step(KERNELS, Portable()), rtol=1e-4, atol=1e-5
    )


def test_the_batch_norm_penalty_sums_the_largest_scale_of_each_layer():
    params = {
        "norm": {"scale": jnp.array([1.0, -3.0]), "bias": jnp.array([9.0, 9.0])},
        "stack": {"norm": {"scale": jnp.array([[0.5, 0.25], [2.0, -1.0]])}},
        "wide": {"norm": {"scale": jnp.array([0.5, -0.25, 0.125])}},
        "conv": {"kernel": jnp.full((1, 1, 1, 1), 50.0)},
    }
    np.testing.assert_allclose(regularizers.batch_norm_penalty(params), 3.0 + 0.5 + 2.0 + 0.5)
    assert regularizers.batch_norm_penalty({"conv": params["conv"]}) == 0.0


def test_wrong_kernels_are_errors_that_name_them():
    with pytest.raises(ValueError, match="kernel a/kernel has shape"):
        regularizers.init_spectral_vectors(jax.random.key(0), {"a": {"kernel": jnp.zeros((3, 3))}})
