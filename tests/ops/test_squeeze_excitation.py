"""Squeeze and excitation in a residual sum, compared with float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.gradients import with_gradients
from tests.ops.implementations import GPU, PORTABLE

SCALE = 0.1


def reference(skip, x, k1, b1, k2, b2):
    hidden = jnp.maximum(x.mean((1, 2)) @ k1 + b1[None], 0)
    gate = 1 / (1 + jnp.exp(-(hidden @ k2 + b2[None])))
    return skip + SCALE * x * gate[:, None, None]


@pytest.mark.parametrize("ops", [PORTABLE, GPU])
@pytest.mark.parametrize(
    ("shape", "hidden"), [((3, 4, 4, 70), 4), ((8, 9, 7, 64), 17), ((1, 2, 2, 3), 4)]
)
def test_values_and_gradients_equal_those_in_float64(shape, hidden, ops):
    rng = np.random.default_rng(0)
    channels = shape[-1]
    shapes = [shape, shape, (channels, hidden), (hidden,), (hidden, channels), (channels,)]
    given, g = [rng.normal(size=shape) for shape in shapes], rng.normal(size=shape)

    def ours(skip, x, k1, b1, k2, b2):
        return ops.add_gated(skip, x, (k1, b1), (k2, b2), SCALE)

    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, with_gradients(reference, given, g))
    given, g = jax.tree.map(lambda a: a.astype(np.float32), (given, g))
    found = with_gradients(ours, given, g)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
