"""The Pallas kernels of the depthwise convolution, interpreted, against float64; and lowered."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from nvae_jax.ops.cpu import shifted
from nvae_jax.ops.gpu import Gpu
from nvae_jax.ops.gpu import depthwise as gpu
from nvae_jax.ops.portable.geometry import conv_geometry, upsample_geometry

# The plain convolution, that which leaves out every second output, and the up cell's.
GEOMETRIES = [partial(conv_geometry, stride=1), partial(conv_geometry, stride=2), upsample_geometry]
SMALL_BLOCKS = dict(ROWS=2, COLUMNS=2, GRAD_ROWS=2, GRAD_COLUMNS=2, PROGRAMS=3)
# Blocks that an array does not fill, and several of them, by rows, columns and channels.
CASES = [
    ((5, 3), 6, 5, {}, jnp.float32, 1e-6),
    ((5, 3), 6, 5, SMALL_BLOCKS, jnp.bfloat16, 4e-3),
    ((1, 4), 70, 3, SMALL_BLOCKS, jnp.float32, 1e-6),
]


@pytest.mark.parametrize("size, c, k, blocks, dtype, tolerance", CASES)
@pytest.mark.parametrize("of", GEOMETRIES, ids=["plain", "stride", "doubled"])
@pytest.mark.parametrize("name", ["correlate", "input_grad", "kernel_grad"])
def test_values_and_gradients_equal_float64_references(
    size, c, k, blocks, dtype, tolerance, of, name, monkeypatch
):
    for constant, value in blocks.items():
        monkeypatch.setattr(gpu, constant, value)
    geometry, rng = of(size, kernel_size=k), np.random.default_rng(0)
    x, g = (rng.normal(size=(2, *n, c)) for n in (geometry.size, geometry.out_size))
    w = rng.normal(size=(geometry.kernel_size,) * 2 + (c,))
    x, g, w = jnp.asarray(x, dtype), jnp.asarray(g, dtype), jnp.asarray(w, jnp.float32)
    given = {"correlate": (x, w), "input_grad": (g, w), "kernel_grad": (x, g)}[name]
    options = dict(geometry=geometry, precision=None)
    y = jax.jit(partial(getattr(gpu, name), interpret=True, **options))(*given)
    with jax.enable_x64(True):
        given = (np.asarray(v, np.float64) for v in given)
        want = np.asarray(jax.jit(partial(getattr(shifted, name), **options))(*given))
    assert y.dtype == (jnp.float32 if name == "kernel_grad" else dtype)
    np.testing.assert_allclose(
        np.asarray(y, np.float64), want, rtol=0, atol=tolerance * abs(want).max()
    )


@pytest.mark.parametrize("operation", ["depthwise_conv", "upsample_depthwise_conv"])
def test_the_kernels_and_their_gradients_lower_for_cuda(operation):
    def gradients(x, kernel):
        y, pullback = jax.vjp(getattr(Gpu(), operation), x, kernel)
        return y, pullback(y)

    shapes = (
        jax.ShapeDtypeStruct((2, 8, 8, 24), jnp.bfloat16),
        jax.ShapeDtypeStruct((5, 5, 1, 24), jnp.float32),
    )
    check = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    lowered = export.export(jax.jit(gradients), platforms=["cuda"], disabled_checks=check)(*shapes)
    assert lowered.mlir_module().count("depthwise_convolution") >= 2
    assert lowered.mlir_module().count("depthwise_kernel_grad") >= 1
