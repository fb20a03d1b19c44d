"""The depthwise convolution, compared with a float64 reference, also under vmap, scan and remat."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from nvae_jax.ops.anywhere import MultiPlatform
from nvae_jax.ops.cpu import Cpu, Native, native, shifted
from nvae_jax.ops.cpu.native import shared_library
from nvae_jax.ops.portable import Portable
from nvae_jax.ops.portable.depthwise import depthwise_conv
from tests.ops.implementations import CPU, NATIVE, NEEDS_COMPILER, PORTABLE

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def reference(x, kernel, g, stride):
    """(y, dx, dkernel) in float64 NumPy, summed tap by tap; g is the cotangent of y."""
    x, kernel, g = (np.asarray(a, np.float64) for a in (x, kernel, g))
    (_, h, w, _), k = x.shape, kernel.shape[0]
    pad = (k - 1) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y, dx, dkernel = np.zeros_like(g), np.zeros_like(padded), np.zeros_like(kernel)
    for row in range(k):
        for column in range(k):
            window = np.s_[:, row : row + h : stride, column : column + w : stride]
            y += padded[window] * kernel[row, column, 0]
            dx[window] += g * kernel[row, column, 0]
            dkernel[row, column, 0] = (padded[window] * g).sum((0, 1, 2))
    return y, dx[:, pad : pad + h, pad : pad + w], dkernel


def upsample_reference(x, kernel, g):
    repeated = np.asarray(x, np.float64).repeat(2, 1).repeat(2, 2)
    y, dx, dkernel = reference(repeated, kernel, g, 1)
    b, h, w, c = x.shape
    return y, dx.reshape(b, h, 2, w, 2, c).sum((2, 4)), dkernel


def data(size, k, out_size, dtype=jnp.float32, batch=2, channels=3):
    """x, kernel and a cotangent of the output, rounded to `dtype`."""
    rng = np.random.default_rng(0)
    shapes = (batch, *size, channels), (k, k, 1, channels), (batch, *out_size, channels)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def with_gradients(operation):
    def run(x, kernel, g):
        y, pullback = jax.vjp(operation, x, kernel)
        return y, *pullback(g)

    return run


def assert_close(actual, expected, dtype):
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        e = np.asarray(e, np.float64)
        error = np.abs(np.asarray(a, np.float64) - e).max()
        assert error <= tolerance * np.abs(e).max()


CASES = [
    # kernel, stride, size, dtype: odd and even sizes, smaller and larger than the kernel and
    # than a tile of the kernel gradient.
    (3, 1, (4, 6), jnp.float32),
    (3, 2, (5, 6), jnp.float32),
    (3, 2, (1, 1), jnp.float32),
    (5, 1, (8, 8), jnp.float32),
    (5, 1, (3, 17), jnp.float32),
    (5, 1, (2, 1), jnp.float32),
    (5, 1, (5, 4), jnp.bfloat16),
    (5, 2, (8, 8), jnp.float32),
    (5, 2, (7, 9), jnp.float32),
    (5, 2, (6, 5), jnp.bfloat16),
    (7, 1, (6, 5), jnp.float32),
    (7, 2, (6, 5), jnp.float32),
    (9, 2, (4, 4), jnp.float32),
    (11, 1, (4, 4), jnp.float32),
    (11, 2, (5, 4), jnp.float32),
    (11, 2, (4, 4), jnp.bfloat16),
]


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
@pytest.mark.parametrize(("k", "stride", "size", "dtype"), CASES)
def test_values_and_gradients_equal_those_in_float64(k, stride, size, dtype, ops):
    x, kernel, g = data(size, k, [-(-n // stride) for n in size], dtype)

    def operation(x, kernel):
        return ops.depthwise_conv(x, kernel, stride=stride)

    actual = jax.jit(with_gradients(operation))(x, kernel, g)
    assert_close(actual, reference(x, kernel, g, stride), dtype)


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
@pytest.mark.parametrize(
    ("k", "size", "dtype"),
    [
        (3, (3, 4), jnp.float32),
        (5, (4, 4), jnp.float32),
        (5, (1, 3), jnp.bfloat16),
        (7, (3, 2), jnp.float32),
    ],
)
def test_upsampling_values_and_gradients_equal_those_in_float64(k, size, dtype, ops):
    x, kernel, g = data(size, k, [2 * n for n in size], dtype)

    def operation(x, kernel):
        return ops.upsample_depthwise_conv(x, kernel)

    actual = jax.jit(with_gradients(operation))(x, kernel, g)
    assert_close(actual, upsample_reference(x, kernel, g), dtype)


@pytest.mark.parametrize(("k", "stride"), [(3, 1), (5, 1), (5, 2)])
@pytest.mark.parametrize("channels", [16, 28, 37, 100])
@NEEDS_COMPILER
def test_sizes_around_the_blocks_of_the_native_kernel_give_the_same_values(k, stride, channels):
    # More channels than a block, or fewer than a block and a register; several strips of rows.
    size = (45, 40)
    x, kernel, g = data(size, k, [-(-n // stride) for n in size], channels=channels)
    operation = partial(Native().depthwise_conv, stride=stride)
    actual = jax.jit(with_gradients(operation))(x, kernel, g)
    assert_close(actual, reference(x, kernel, g, stride), jnp.float32)


@NEEDS_COMPILER
def test_the_native_kernel_is_deterministic():
    x, kernel, g = data((8, 8), 5, (8, 8), batch=7, channels=70)
    run = jax.jit(with_gradients(Native().depthwise_conv))
    first = run(x, kernel, g)
    for _ in range(20):
        for a, b in zip(run(x, kernel, g), first, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def fresh_native(tmp_path, monkeypatch):
    """`native` as in a new process, with an empty folder for compiled libraries."""
    (tmp_path / "native").mkdir(mode=0o700)
    monkeypatch.setattr(shared_library, "_folders", lambda: [tmp_path / "native"])
    native.problem.cache_clear()
    yield tmp_path
    native.problem.cache_clear()


def kept(folder):
    """The files in `folder`, without locks."""
    return [path for path in folder.glob("*/*") if path.suffix != ".lock"]


def test_processes_that_start_together_compile_the_native_library_once(fresh_native):
    """The compiler of this test writes down the files that it was called for."""
    compiler, calls = fresh_native / "compiler", fresh_native / "calls"
    compiler.write_text(f'sleep 0.1; for last; do :; done; echo "$last" | tee -a {calls} > "$last"')
    compiled = partial(shared_library._cached_or_compiled, fresh_native / "native", "kernels")
    with ThreadPoolExecutor(2) as pool:
        libraries = list(pool.map(compiled, [["sh", str(compiler)]] * 2))
    libraries.append(compiled(["sh", str(compiler)]))
    assert kept(fresh_native) == [libraries[0]] and len(set(libraries)) == 1
    assert len(calls.read_text().splitlines()) == len(shared_library.SOURCES) + 1


@pytest.mark.parametrize(
    ("compiler", "message"), [("no-such-compiler", "no C"), ("false", "cannot compile")]
)
def test_without_a_working_compiler_native_kernels_are_an_error_that_says_why(
    fresh_native, monkeypatch, compiler, message
):
    monkeypatch.setenv("CXX", compiler)
    assert message in native.problem()
    assert not kept(fresh_native)
    x, kernel, _ = data((4, 4), 3, (4, 4), channels=11)
    with pytest.raises(RuntimeError, match=message):
        Native().depthwise_conv(x, kernel)


def test_bfloat16_is_accumulated_in_float32():
    # 256 + 24 ones: a bfloat16 sum would stop at 256.
    x, kernel = jnp.ones((1, 5, 5, 1), jnp.bfloat16), jnp.ones((5, 5, 1, 1), jnp.bfloat16)
    kernel = kernel.at[0, 0].set(256)
    for ops in (Portable(), Cpu()):  # `Native` leaves it to `Cpu`
        assert ops.depthwise_conv(x, kernel)[0, 2, 2, 0] == 280


def test_a_float32_kernel_of_bfloat16_inputs_has_a_float32_gradient():
    x, kernel, g = data((4, 4), 3, (4, 4), jnp.bfloat16)
    kernel = kernel.astype(jnp.float32)
    y, dx, dkernel = jax.jit(with_gradients(Native().depthwise_conv))(x, kernel, g)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert_close([dkernel], [reference(x, kernel, g, 1)[2]], jnp.float32)


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
def test_vmap_over_examples_and_kernels_equals_separate_calls(ops):
    x, kernel, g = data((4, 5), 3, (4, 5), batch=6)
    xs, gs = x.reshape(3, 2, 4, 5, 3), g.reshape(3, 2, 4, 5, 3)
    kernels = jnp.stack([kernel, 2 * kernel, kernel[::-1]])
    operation = ops.depthwise_conv
    actual = jax.jit(jax.vmap(with_gradients(operation)))(xs, kernels, gs)
    for i in range(3):
        expected = reference(xs[i], kernels[i], gs[i], 1)
        assert_close([a[i] for a in actual], expected, jnp.float32)


@pytest.mark.parametrize("ops", [PORTABLE, CPU, NATIVE])
def test_scan_and_remat_equal_a_plain_stack(ops):
    x, kernel, _ = data((4, 4), 3, (4, 4))
    kernels = jnp.stack([kernel, kernel[::-1], kernel[:, ::-1]])

    def layer(x, kernel):
        return jnp.tanh(ops.depthwise_conv(x, kernel)), None

    def plain(x, kernels):
        for i in range(3):
            x, _ = layer(x, kernels[i])
        return jnp.sum(x)

    def scanned(x, kernels):
        return jnp.sum(jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, kernels)[0])

    expected = jax.jit(jax.grad(plain, (0, 1)))(x, kernels)
    actual = jax.jit(jax.grad(scanned, (0, 1)))(x, kernels)
    assert_close(actual, expected, jnp.float32)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, sys
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from nvae_jax.ops.cpu import Cpu
from nvae_jax.ops.portable import Portable

assert jax.device_count() == 4
ops = {"Cpu": Cpu, "Portable": Portable}[sys.argv[1]]()
mesh = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Auto,))
split, copied = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
x = jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 3))
operations = [
    ops.depthwise_conv,
    lambda x, w: ops.depthwise_conv(x, w, stride=2),
    ops.upsample_depthwise_conv,
]
def loss(operation):
    return lambda x, w: jnp.sum(jnp.sin(operation(x, w)))
for operation in operations:
    run = jax.grad(loss(operation), (0, 1))
    compiled = jax.jit(run, in_shardings=(split, copied)).lower(x, kernel).compile()
    text = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text, collective
    assert "all-reduce" in text
    dx, dw = compiled(jax.device_put(x, split), jax.device_put(kernel, copied))
    assert dx.sharding.is_equivalent_to(split, 4), dx.sharding
    for a, b in zip((dx, dw), jax.jit(run)(x, kernel)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
print("done")
"""


@pytest.mark.parametrize("ops", [PORTABLE, CPU])
def test_a_sharded_batch_stays_sharded(ops):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": root,
    }
    command = [sys.executable, "-W", "error", "-c", SHARDED, type(ops).__name__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "done" in result.stdout, result.stderr


@pytest.mark.parametrize("name", ["depthwise_conv", "upsample_depthwise_conv"])
def test_a_program_for_several_platforms_has_the_implementation_of_each(name):
    # Lowering for a platform needs none of its devices.
    x, kernel, _ = data((4, 4), 5, (4, 4))

    def loss(x, kernel):
        return jnp.sum(getattr(MultiPlatform(), name)(x, kernel) ** 2)

    trace = jax.jit(loss).trace(x, kernel)
    for platform, convolves in {"cpu": False, "cuda": True, "tpu": True}.items():
        text = trace.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == convolves, platform
    exported = export.export(jax.jit(loss), platforms=["cpu", "cuda", "tpu"])(x, kernel)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.testing.assert_allclose(exported.call(x, kernel), loss(x, kernel), rtol=1e-5)


def test_layers_of_equal_shape_are_traced_once():
    chex.clear_trace_counter()
    names = ("correlate", "input_grad", "kernel_grad")
    counted = {name: chex.assert_max_traces(getattr(shifted, name), n=1) for name in names}
    maps = type("Maps", (), {name: staticmethod(f) for name, f in counted.items()})
    x, kernel, _ = data((4, 4), 3, (4, 4))

    def loss(x, kernel):
        for _ in range(4):
            x = jnp.tanh(depthwise_conv(x, kernel, maps=maps))
        return jnp.sum(x)

    jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel)


def test_wrong_arguments_are_errors_that_name_them():
    x, kernel, _ = data((4, 4), 3, (4, 4))
    with pytest.raises(ValueError, match="stride"):
        Portable().depthwise_conv(x, kernel, stride=3)
    with pytest.raises(ValueError, match="expected x"):
        Portable().depthwise_conv(x, kernel[:2, :2])
    with pytest.raises(ValueError, match="expected x"):
        Portable().upsample_depthwise_conv(x, kernel[..., :2])


def test_tiles_cover_every_size():
    for size in [(1, 1), (4, 4), (8, 8), (3, 17), (16, 16), (33, 5), (64, 64)]:
        tiles = shifted._tiles(size)
        for n, (count, length) in zip(size, tiles, strict=True):
            assert count * length >= n > (count - 1) * length
        assert np.prod([length for _, length in tiles]) <= shifted._TILE
