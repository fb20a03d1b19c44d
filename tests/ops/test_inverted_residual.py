"""The body of an inverted residual with fixed statistics, compared with its parts in float64."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.ops.cpu import Cpu
from tests.ops.implementations import CPU, NATIVE, PORTABLE

# (shape of x, hidden channels, outputs): one image a task and several, the last task with fewer of
# them; channels that fill no vector; hidden channels that are one block, a part of one and several.
CASES = [
    ((9, 8, 8, 12), 72, 12),
    ((35, 4, 4, 7), 150, 70),
    ((8, 9, 13, 3), 18, 5),
    ((520, 1, 1, 5), 64, 130),
]


def arrays(case, k=5, dtype=np.float64):
    """x, three kernels and four pairs (gain, shift)."""
    (*size, channels), hidden, outputs = case
    rng = np.random.default_rng(0)
    kernels = [
        rng.normal(size=(1, 1, channels, hidden)) / channels**0.5,
        rng.normal(size=(k, k, 1, hidden)) / k,
        rng.normal(size=(1, 1, hidden, outputs)) / hidden**0.5,
    ]
    norms = [tuple(rng.normal(size=(2, n))) for n in (channels, hidden, hidden, outputs)]
    given = rng.normal(size=(*size, channels)), kernels, norms
    return jax.tree.map(lambda a: a.astype(dtype), given)


def in_parts(x, kernels, norms, *, stride=1, upsample=False):
    def norm(x, gain, shift):
        return x * gain.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)

    expand, depthwise, project = kernels
    x = jnp.einsum("bhwc,ce->bhwe", norm(x, *norms[0]), expand[0, 0])
    x = nn.swish(norm(x, *norms[1]))
    if upsample:
        x = Cpu().upsample_depthwise_conv(x, depthwise)
    else:
        x = Cpu().depthwise_conv(x, depthwise, stride=stride)
    x = nn.swish(norm(x, *norms[2]))
    return norm(jnp.einsum("bhwe,eo->bhwo", x, project[0, 0]), *norms[3])


def reference(case, k=5, function=None, **options):
    with jax.enable_x64(True):
        run = partial(in_parts, **options)
        found = jax.jit(function(run) if function else run)(*arrays(case, k))
        assert all(a.dtype == jnp.float64 for a in jax.tree.leaves(found))
        return found


def check(found, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=tolerance * np.abs(b).max())


def gradients(run):
    def total(*given):
        y = run(*given)
        return (y * np.random.default_rng(1).normal(size=y.shape).astype(y.dtype)).sum()

    return jax.grad(total, (0, 1, 2))


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_equal_those_of_the_separate_operations(case, ops):
    found = jax.jit(ops.inverted_residual)(*arrays(case, dtype=np.float32))
    assert found.dtype == jnp.float32
    check(found, reference(case))


@pytest.mark.parametrize("ops", [NATIVE])
@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_every_kernel_size_gives_the_values_of_the_separate_operations(k, upsample, ops):
    case, run = CASES[0], jax.jit(partial(ops.inverted_residual, upsample=upsample))
    found = run(*arrays(case, k, np.float32))
    check(found, reference(case, k, upsample=upsample))


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
@pytest.mark.parametrize("options", [{"stride": 2}, {"upsample": True}], ids=["down", "up"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_strided_and_upsampling_bodies_give_the_values_of_the_separate_operations(
    case, options, ops
):
    run = jax.jit(partial(ops.inverted_residual, **options))
    check(run(*arrays(case, dtype=np.float32)), reference(case, **options))


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
def test_gradients_equal_those_of_the_separate_operations(ops, upsample):
    case = ((8, 8, 8, 5), 30, 6)

    run = partial(ops.inverted_residual, upsample=upsample)
    found = jax.jit(gradients(run))(*arrays(case, dtype=np.float32))
    check(found, reference(case, function=gradients, upsample=upsample), 1e-4)


@pytest.mark.parametrize("ops", [NATIVE])
@pytest.mark.parametrize(
    ("shape", "options", "at_once"),
    [
        ((8, 8, 8, 4), {}, True),
        ((8, 8, 8, 4), {"upsample": True}, True),
        ((8, 8, 8, 4), {"stride": 2}, False),
        ((7, 8, 8, 4), {}, False),
        ((8, 65, 64, 4), {}, False),
        ((8, 33, 32, 4), {"upsample": True}, False),
        ((32, 4, 4, 4), {}, True),
    ],
)
def test_one_fused_call_is_used_only_for_shapes_where_it_is_faster(shape, options, at_once, ops):
    given = arrays((shape, 24, 4), dtype=np.float32)
    run = partial(ops.inverted_residual, **options)
    program = jax.jit(run).lower(*given).as_text()
    assert ("nvae_jax_inverted_residual" in program) == at_once


@pytest.mark.parametrize("ops", [NATIVE])
def test_a_result_does_not_depend_on_the_call_before(ops):
    # The larger call fills buffers that the smaller one reuses.
    run = ops.inverted_residual
    small = arrays(((8, 8, 8, 3), 20, 4), dtype=np.float32)
    first = run(*small)
    run(*arrays(((16, 16, 16, 40), 240, 70), dtype=np.float32))
    np.testing.assert_array_equal(run(*small), first)


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
def test_bfloat16_values_are_close_to_those_in_float64(ops):
    x, kernels, norms = arrays(CASES[0], dtype=np.float32)
    x, kernels = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (x, kernels))
    found = ops.inverted_residual(x, kernels, norms)
    assert found.dtype == jnp.bfloat16
    found, expected = np.asarray(found.astype(jnp.float32)), np.asarray(reference(CASES[0]))
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
