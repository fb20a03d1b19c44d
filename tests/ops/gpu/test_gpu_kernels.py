"""The kernels for GPUs, interpreted, against what JAX derives in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.ops.gpu import Gpu, columns
from nvae_jax.ops.gpu import normalization as gpu_normalization
from nvae_jax.ops.gpu import squeeze_excitation as gpu_squeeze_excitation
from nvae_jax.ops.portable import Portable
from nvae_jax.ops.portable.normalization import swish
from tests.ops.gradients import with_gradients

EPSILON = 1e-5
SCALE = 0.1


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        a, b = (np.asarray(array, np.float64) for array in (a, b))
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def random(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


# Rows that fill no tile, channels that are no power of two and of several tiles.
SHAPES = [(3, 5, 7, 90), (2, 3, 3, 6)]
# Of `columns`: as it is; several parts, which the map adds up; more than it does, of several tiles.
SIZES = [{}, dict(SUM_ROWS=16), dict(SUM_ROWS=16, FEW=2, PROGRAMS=5)]


def normalized(x, scale, bias, *, with_swish):
    options = dict(axis=(0, 1, 2), keepdims=True)
    y = (x - x.mean(**options)) / jnp.sqrt(x.var(**options) + EPSILON)
    y = y * scale[None, None, None] + bias[None, None, None]
    return y * jax.nn.sigmoid(y) if with_swish else y


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("with_swish", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sizes", SIZES, ids=["one", "few", "many"])
def test_batch_norm_and_its_gradients_equal_those_in_float64(
    sizes, shape, with_swish, dtype, monkeypatch
):
    for name, size in sizes.items():
        monkeypatch.setattr(columns, name, size)
    x, scale, bias, center, g = random(shape, *[shape[-1:]] * 3, shape)
    x, g = (jnp.asarray(array, dtype) for array in (3 * x + 2, g))
    scale, bias, center = (jnp.asarray(array, jnp.float32) for array in (scale, bias, center))
    with jax.enable_x64(True):
        given = [jnp.asarray(array, jnp.float64) for array in (x, scale, bias)]
        function = partial(normalized, with_swish=with_swish)
        expected = with_gradients(function, given, jnp.asarray(g, jnp.float64))
        moments = given[0].mean((0, 1, 2)), given[0].var((0, 1, 2))
    options = dict(epsilon=EPSILON, with_swish=with_swish, interpret=True)
    y, mean, var = gpu_normalization.batch_norm(x, scale, bias, center, **options)
    gradients = gpu_normalization.gradients(x, scale, bias, mean, var, g, **options)
    assert [array.dtype for array in (y, gradients[0])] == [dtype] * 2
    assert_close((mean, var), moments, 5e-6)
    assert_close((y, *gradients), expected, 2e-6 if dtype == jnp.float32 else 1e-2)


def test_batch_norm_under_vmap_equals_separate_calls():
    x, scale, bias, center = (
        jnp.asarray(array, jnp.float32) for array in random((2, 3, 5, 4, 6), *[(2, 6)] * 3)
    )
    options = dict(epsilon=EPSILON, with_swish=True, interpret=True)
    norm = partial(gpu_normalization.batch_norm, **options)
    together = jax.vmap(norm)(x, scale, bias, center)
    for n in range(2):
        alone = norm(x[n], scale[n], bias[n], center[n])
        assert_close([array[n] for array in together], alone, 1e-6)


@pytest.mark.parametrize("shape", [(3, 4, 4, 24), (20, 9, 7, 90), (2, 16, 16, 128)])
def test_squeeze_and_excitation_and_its_gradients_equal_those_in_float64(shape):
    channels, hidden = shape[-1], 5
    weights = (channels, hidden), (hidden,), (hidden, channels), (channels,)
    *given, g = random(shape, shape, *weights, shape)

    def added(ops, skip, x, reduce, bias, expand, expand_bias):
        return ops.add_gated(skip, x, (reduce, bias), (expand, expand_bias), SCALE)

    with jax.enable_x64(True):
        expected = with_gradients(partial(added, Portable()), given, g)
    *given, g = (jnp.asarray(array, jnp.float32) for array in (*given, g))
    assert_close(with_gradients(partial(added, Gpu(interpret=True)), given, g), expected, 2e-6)


def test_shapes_that_do_not_fit_one_program_are_left_to_xla():
    wide, large = jnp.zeros((1, 2, 2, 1024)), jnp.zeros((1, 64, 64, 8))
    assert not gpu_squeeze_excitation.supports(wide) and not gpu_squeeze_excitation.supports(large)


def lowered(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


def test_a_training_step_of_batch_norm_is_four_kernels():
    def step(x, scale, bias, g):
        function = partial(Gpu().batch_norm, epsilon=EPSILON, activation=swish)
        return with_gradients(lambda *given: function(*given)[0], (x, scale, bias), g)

    text = lowered(step, (8, 4, 4, 96), (96,), (96,), (8, 4, 4, 96))
    assert text.count("__gpu$xla.gpu.triton") == 4


def test_a_training_step_of_squeeze_and_excitation_is_three_kernels():
    def step(skip, x, *weights):
        *weights, g = weights

        def function(skip, x, reduce, bias, expand, expand_bias):
            return Gpu().add_gated(skip, x, (reduce, bias), (expand, expand_bias), SCALE)

        return with_gradients(function, (skip, x, *weights), g)

    image, weights = (8, 4, 4, 96), ((96, 6), (6,), (6, 96), (96,))
    text = lowered(step, image, image, *weights, image)
    assert text.count("__gpu$xla.gpu.triton") == 3
