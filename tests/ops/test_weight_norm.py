"""Weight normalisation of many kernels, compared with float64."""

import jax
import jax.numpy as jnp
import numpy as np

from nvae_jax.ops.portable.weight_norm import EPSILON, weight_norm
from tests.ops.gradients import with_gradients

SHAPES = [(3, 3, 4, 20), (5, 1, 1, 6, 7), (2, 5, 5, 1, 33), (1, 1, 1, 1)]


def reference(kernels, log_scales):
    normalized = []
    for v, log_scale in zip(kernels, log_scales, strict=True):
        norm = jnp.sqrt((v**2).sum((-4, -3, -2), keepdims=True))
        gain = jnp.exp(log_scale)[..., None, None, None, :]
        normalized.append(gain * v / (norm + EPSILON))
    return normalized


def given():
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=shape) for shape in SHAPES]
    log_scales = [rng.normal(size=(*shape[:-4], shape[-1])) for shape in SHAPES]
    gradients = [rng.normal(size=shape) for shape in SHAPES]
    return (kernels, log_scales), gradients


def test_values_and_gradients_equal_those_in_float64():
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, with_gradients(reference, *given()))

    arrays = jax.tree.map(lambda a: a.astype(np.float32), given())
    found = with_gradients(weight_norm, *arrays)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_channel_of_zeros_stays_zero():
    kernel = jnp.ones((3, 3, 2, 4)).at[..., 1].set(0.0)
    (normalized,) = weight_norm([kernel], [jnp.zeros(4)])
    np.testing.assert_array_equal(normalized[..., 1], 0.0)
    np.testing.assert_allclose(jnp.sum(normalized**2, (0, 1, 2)), [1.0, 0.0, 1.0, 1.0], rtol=1e-4)
