"""A depthwise convolution between activations, against its parts in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.ops.depthwise import depthwise_conv, upsample_depthwise_conv
from nvae_jax.ops.depthwise.activated import activated_depthwise_conv
from tests.ops.implementations import NATIVE, XLA

# Channels that fill no vector of any machine; more rows than fit a buffer; images of one pixel.
SHAPES = [(2, 5, 7, 3), (2, 8, 8, 40), (1, 40, 37, 33), (3, 1, 1, 5)]
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"stride": 2}, id="down"),
    pytest.param({"upsample": True}, id="up"),
]


def arrays(shape, k=5, dtype=np.float64):
    """x, kernel, (gain, shift) before and after, with gates as good as 0 and 1 among others."""
    rng = np.random.default_rng(0)
    channels = shape[-1]
    before, after = rng.normal(size=(2, 2, channels)) * np.logspace(-1, 1.5, channels)
    given = rng.normal(size=shape), rng.normal(size=(k, k, 1, channels)), tuple(before)
    return jax.tree.map(lambda a: a.astype(dtype), (*given, tuple(after)))


def reference(x, kernel, before, after, *, stride=1, upsample=False):
    def activation(x, gain, shift):
        gain, shift = (v.reshape(1, 1, 1, -1) for v in (gain, shift))
        y = gain * x + shift
        return y * jax.nn.sigmoid(y)

    x = activation(x, *before)
    if upsample:
        y = upsample_depthwise_conv(x, kernel, implementation="shifted")
    else:
        y = depthwise_conv(x, kernel, stride=stride, implementation="shifted")
    return activation(y, *after)


@pytest.mark.parametrize("implementation", [XLA, NATIVE])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, options, implementation):
    with jax.enable_x64(True):
        expected = reference(*arrays(shape), **options)
    function = partial(activated_depthwise_conv, implementation=implementation, **options)
    found = jax.jit(function)(*arrays(shape, dtype=np.float32))
    assert found.dtype == jnp.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("k", [1, 3, 11])
@pytest.mark.parametrize("implementation", [NATIVE])
def test_sizes_of_kernels(k, implementation):
    shape = (2, 6, 9, 35)
    for options in ({}, {"stride": 2}, {"upsample": True}):
        with jax.enable_x64(True):
            expected = reference(*arrays(shape, k), **options)
        found = activated_depthwise_conv(
            *arrays(shape, k, np.float32), implementation=implementation, **options
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("implementation", [XLA, NATIVE])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients(options, implementation):
    def total(function, *given):
        y = function(*given, **options)
        return (y * np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)).sum()

    shape = (2, 5, 7, 3)
    with jax.enable_x64(True):
        expected = jax.grad(partial(total, reference), (0, 1, 2, 3))(*arrays(shape))
    ours = partial(activated_depthwise_conv, implementation=implementation)
    found = jax.grad(partial(total, ours), (0, 1, 2, 3))(*arrays(shape, dtype=np.float32))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize("implementation", [XLA, NATIVE])
def test_bfloat16_and_vmap(implementation):
    function = partial(activated_depthwise_conv, implementation=implementation)
    x, *others = arrays((2, 8, 8, 6), dtype=np.float32)
    expected = function(x, *others)
    np.testing.assert_array_equal(
        jax.vmap(lambda x: function(x, *others))(x[:, None])[:, 0], expected
    )
    found = function(x.astype(jnp.bfloat16), *others)
    assert found.dtype == jnp.bfloat16
    error = np.abs(found.astype(jnp.float32) - expected).max()
    assert error < 0.05 * np.abs(expected).max()
