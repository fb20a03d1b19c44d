"""The dense convolution and its gradients, compared with JAX's own in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.ops.cpu import Cpu
from tests.ops.implementations import CPU, NATIVE, PORTABLE

CASES = [(k, stride, size) for k in (1, 3, 5) for stride in (1, 2) for size in ((6, 8), (7, 5))]


def reference(x, kernel, stride):
    """JAX's convolution, with the order of dimensions that is fast for it."""
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def arrays(k, stride, size, dtype=np.float64, batch=2, channels=(3, 4)):
    rng = np.random.default_rng(0)
    out = [-(-n // stride) for n in size]
    shapes = ((batch, *size, channels[0]), (k, k, *channels), (batch, *out, channels[1]))
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def with_gradients(function, x, kernel, g):
    y, pullback = jax.vjp(function, x, kernel)
    return y, *pullback(g)


def check(given, stride, ops):
    with jax.enable_x64(True):
        expected = with_gradients(lambda x, w: reference(x, w, stride), *given)
    given = [a.astype(np.float32) for a in given]
    ours = partial(ops.conv, stride=stride)
    found = jax.jit(partial(with_gradients, ours))(*given)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
@pytest.mark.parametrize(("k", "stride", "size"), CASES)
def test_values_and_gradients_equal_those_in_float64(k, stride, size, ops):
    check(arrays(k, stride, size), stride, ops)


@pytest.mark.parametrize("ops", [NATIVE])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "batch", "channels"),
    [
        ((4, 4), 19, (64, 96)),  # several images for each sum, whole blocks of channels
        ((2, 2), 5, (37, 41)),  # parts of blocks
        ((45, 40), 1, (33, 16)),  # several strips of rows
        ((1, 9), 3, (1, 70)),
    ],
)
def test_sizes_around_the_blocks_of_the_native_kernel_give_the_same_values(
    size, batch, channels, stride, ops
):
    check(arrays(3, stride, size, batch=batch, channels=channels), stride, ops)


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
def test_an_empty_batch_is_allowed(ops):
    given = arrays(3, 1, (4, 4), np.float32, batch=0)
    ours = ops.conv
    y, dx, dkernel = jax.jit(partial(with_gradients, ours))(*given)
    assert (y.shape, dx.shape) == ((0, 4, 4, 4), (0, 4, 4, 3)) and not np.asarray(dkernel).any()


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
@pytest.mark.parametrize("k", [1, 3])
def test_bfloat16_inputs_give_bfloat16_outputs(k, ops):
    given = [jnp.asarray(a, jnp.bfloat16) for a in arrays(k, 1, (6, 6))]
    found = with_gradients(ops.conv, *given)
    expected = with_gradients(lambda x, w: reference(x, w, 1), *given)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(b).max())


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
def test_vmap_scan_and_remat_give_the_same_values(ops):
    x, kernel, g = arrays(3, 1, (5, 6), np.float32)
    kernel, g = kernel[..., :3], g[..., :3]
    kernels = jnp.stack([kernel, 0.5 * kernel])
    ours = ops.conv

    def scanned(x, kernels):
        step = jax.checkpoint(lambda x, w: (ours(x, w), None), prevent_cse=False)
        return jax.lax.scan(step, x, kernels)[0]

    def written_out(x, kernels):
        for w in kernels:
            x = reference(x, w, 1)
        return x

    many = [jnp.stack([a, 2 * a]) for a in (x, kernels, g)]
    found = jax.vmap(lambda *a: with_gradients(scanned, *a))(*many)
    expected = jax.vmap(lambda *a: with_gradients(written_out, *a))(*many)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_gradients_on_cpu_have_the_dimension_order_of_its_fast_kernels():
    given = arrays(3, 1, (6, 8), np.float32)
    text = jax.jit(lambda *a: with_gradients(Cpu().conv, *a)).lower(*given).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 3
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in lines)
