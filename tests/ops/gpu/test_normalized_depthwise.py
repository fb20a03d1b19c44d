"""Norm, swish, depthwise convolution, norm and swish in one operation, against float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.ops.gpu import Gpu, image_blocks
from nvae_jax.ops.portable import Portable
from nvae_jax.ops.portable.normalization import swish

EPSILON = 1e-5
SMALL = dict(ROWS=2, COLUMNS=2, PROGRAMS=3)
# (height and width, channels, k, whether to upsample, sizes of blocks, dtype, tolerance): one block
# an image; several, which the images do not fill, by rows and columns; by channels.
CASES = [
    ((5, 3), 6, 5, False, {}, jnp.float32, 1e-5),
    ((5, 3), 6, 3, False, SMALL, jnp.bfloat16, 2e-2),
    ((1, 4), 70, 3, False, SMALL, jnp.float32, 1e-5),
    ((3, 2), 6, 5, True, {}, jnp.float32, 1e-5),
    ((3, 2), 6, 3, True, SMALL, jnp.float32, 1e-5),
]


def composed(x, kernel, before, after, *, upsample):
    """The same, of single operations."""
    ops = Portable()
    convolve = ops.upsample_depthwise_conv if upsample else ops.depthwise_conv
    y, *first = ops.batch_norm(x, *before[:2], EPSILON, activation=swish, center=before[2])
    y = convolve(y, kernel)
    y, *second = ops.batch_norm(y, *after[:2], EPSILON, activation=swish, center=after[2])
    return y, (tuple(first), tuple(second))


def fused(*arrays, upsample):
    return Gpu(interpret=True).normalized_depthwise_conv(*arrays, EPSILON, upsample=upsample)


def with_gradients(function, given, g):
    """The values, moments and gradients of `function`, by one compiled program."""

    def run(given, g):
        y, pullback, moments = jax.vjp(function, *given, has_aux=True)
        return y, moments, pullback(g)

    return jax.jit(run)(given, g)


def norm(rng, c, mean):
    """Scale, bias and a center that is near the mean."""
    return rng.uniform(0.5, 1.5, c), 0.3 * rng.normal(size=c), mean + 0.1 * rng.normal(size=c)


def arrays(size, c, k, upsample):
    rng = np.random.default_rng(0)
    kernel = rng.uniform(0.2, 1.0, (k, k, 1, c)) * rng.choice([-1, 1], (k, k, 1, c)) / k
    outputs = [n * (2 if upsample else 1) for n in size]
    x, g = (rng.normal(size=(3, *n, c)) for n in (size, outputs))
    given = x + 2, kernel, norm(rng, c, 2), norm(rng, c, 0)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (given, g))


def check(found, expected, tolerance):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = (np.asarray(array, np.float64) for array in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("size, c, k, upsample, blocks, dtype, tolerance", CASES)
def test_values_and_gradients_equal_float64_references(
    size, c, k, upsample, blocks, dtype, tolerance, monkeypatch
):
    for constant, value in blocks.items():
        monkeypatch.setattr(image_blocks, constant, value)
    (x, kernel, *norms), g = arrays(size, c, k, upsample)
    x, kernel, g = (array.astype(dtype) for array in (x, kernel, g))
    found = with_gradients(partial(fused, upsample=upsample), (x, kernel, *norms), g)
    assert found[0].dtype == found[2][0].dtype == dtype
    with jax.enable_x64(True):
        given = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), (x, kernel, *norms))
        g = jnp.asarray(np.asarray(g, np.float64))
        expected = with_gradients(partial(composed, upsample=upsample), given, g)
    # The norms' centers have gradients of zero.
    check(found[:2], expected[:2], tolerance)
    check(found[2][:2], expected[2][:2], tolerance)
    for n in (2, 3):
        check(found[2][n][:2], expected[2][n][:2], tolerance)


@pytest.mark.parametrize("upsample", [False, True])
def test_a_training_step_is_three_kernels_forward_and_three_backward(upsample):
    def step(given, g):
        def function(*arrays):
            return Gpu().normalized_depthwise_conv(*arrays, EPSILON, upsample=upsample)

        return with_gradients(function, given, g)

    lowered = jax.jit(step).trace(*arrays((16, 16), 96, 5, upsample))
    text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 6


def test_convolutions_with_strides_use_single_operations():
    (x, kernel, *norms), _ = arrays((4, 4), 6, 3, False)
    assert Gpu().normalized_depthwise_conv(x, kernel, *norms, EPSILON, stride=2) is None
