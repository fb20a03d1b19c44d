"""The gate of squeeze and excitation, against float64."""

import jax
import numpy as np
import pytest

from nvae_jax.ops.squeeze_excitation import gate
from tests.ops.implementations import NATIVE, XLA


def reference(means, k1, b1, k2, b2):
    return gate(means, (k1, b1), (k2, b2))


@pytest.mark.parametrize("implementation", [XLA, NATIVE])
@pytest.mark.parametrize(("batch", "channels", "hidden"), [(3, 70, 4), (8, 64, 17), (1, 3, 4)])
def test_values_and_gradients(batch, channels, hidden, implementation):
    rng = np.random.default_rng(0)
    shapes = [(batch, channels), (channels, hidden), (hidden,), (hidden, channels), (channels,)]
    given = [rng.normal(size=shape) for shape in shapes]
    g = rng.normal(size=(batch, channels))

    def with_gradients(function, given, g):
        y, pullback = jax.vjp(function, *given)
        return y, *pullback(g)

    def ours(means, k1, b1, k2, b2):
        return gate(means, (k1, b1), (k2, b2), implementation)

    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, with_gradients(reference, given, g))
    given, g = jax.tree.map(lambda a: a.astype(np.float32), (given, g))
    found = jax.jit(lambda *a: with_gradients(ours, *a))(given, g)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
