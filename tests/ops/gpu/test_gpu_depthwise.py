"""The Pallas kernel of the depthwise convolution, interpreted, against float64; and lowered."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from nvae_jax.ops.cpu import shifted
from nvae_jax.ops.gpu import Gpu
from nvae_jax.ops.gpu import depthwise as gpu
from nvae_jax.ops.portable.geometry import conv_geometry


@pytest.mark.parametrize("size, c, k", [((8, 8), 24, 5), ((19, 9), 90, 5), ((4, 20), 24, 3)])
@pytest.mark.parametrize("name", ["correlate", "input_grad"])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)])
def test_is_exact(size, c, k, name, dtype, tolerance):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, c)), dtype)
    w = jnp.asarray(rng.normal(size=(k, k, c)), jnp.float32)
    options = dict(geometry=conv_geometry(size, k, 1), precision=None)
    y = jax.jit(partial(getattr(gpu, name), interpret=True, **options))(x, w)
    with jax.enable_x64(True):
        a, b = (jnp.asarray(np.asarray(v, np.float64)) for v in (x, w))
        want = np.asarray(getattr(shifted, name)(a, b, **options))
    np.testing.assert_allclose(
        np.asarray(y, np.float64), want, rtol=0, atol=tolerance * abs(want).max()
    )


def test_lowers_for_cuda_with_its_gradient():
    def gradients(x, kernel):
        return jax.vjp(Gpu().depthwise_conv, x, kernel)[1](x)

    shapes = (
        jax.ShapeDtypeStruct((2, 8, 8, 24), jnp.bfloat16),
        jax.ShapeDtypeStruct((5, 5, 1, 24), jnp.float32),
    )
    check = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    lowered = export.export(jax.jit(gradients), platforms=["cuda"], disabled_checks=check)(*shapes)
    assert lowered.mlir_module().count("depthwise_convolution") >= 1
