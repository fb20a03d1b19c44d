"""Plans: estimates from the traced step, the chosen setting, and the report of a compiled step."""

import importlib.util
import json
import math
import re

import jax
import jax.numpy as jnp
import pytest

from nvae_jax.configs import folder
from nvae_jax.models.remat import POLICIES
from nvae_jax.planning import compiled, estimate, hlo, plan, topology, tpu
from nvae_jax.planning.collectives import count_collectives
from nvae_jax.planning.estimate import MemoryEstimate, Setting
from nvae_jax.planning.flops import count_flops
from nvae_jax.planning.kernels import KernelCounts
from nvae_jax.planning.liveness import peak_bytes
from tests.conftest import of_devices, tiny_config

FLOAT = 4  # bytes


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def flops(function, *arrays, **kwargs):
    return count_flops(jax.make_jaxpr(function)(*arrays), **kwargs)


def convolve(x, kernel, groups=1, stride=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_flops_of_products_and_convolutions_are_counted_exactly():
    assert flops(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    x, kernel = shape(2, 8, 8, 6), shape(3, 3, 6, 10)
    forward = 2 * (2 * 8 * 8 * 10) * (3 * 3 * 6)
    assert flops(convolve, x, kernel) == forward
    depthwise = flops(lambda x, k: convolve(x, k, groups=6), x, shape(3, 3, 1, 6))
    assert depthwise == 2 * (2 * 8 * 8 * 6) * (3 * 3)
    # A gradient for the input and one for the kernel, each as much work as the convolution.
    for stride in (1, 2):
        forward = flops(lambda x, k, s=stride: convolve(x, k, stride=s), x, kernel)
        gradient = jax.grad(lambda x, k, s=stride: convolve(x, k, stride=s).sum(), (0, 1))
        assert flops(gradient, x, kernel) == pytest.approx(3 * forward, rel=1e-9)


def test_flops_of_loops_and_branches_are_counted_exactly():
    def scanned(x, stack):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

    assert flops(scanned, shape(4, 4), shape(9, 4, 4)) == 9 * 2 * 4**3

    def looped(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: x @ x, x)

    assert flops(looped, shape(4, 4)) == 5 * 2 * 4**3

    def branched(x, which):
        return jax.lax.cond(which, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops(branched, shape(4, 4), True) == 2 * 2 * 4**3


def peak(function, *arrays, **kwargs):
    size = estimate.num_bytes
    return peak_bytes(jax.make_jaxpr(function)(*arrays), size, **kwargs) / (FLOAT * 100)


def test_peak_memory_counts_arrays_that_are_alive_at_the_same_time():
    x = shape(100)
    assert peak(lambda x: jnp.sin(jnp.cos(jnp.exp(x))), x) == 2  # each result with its operand
    assert peak(lambda x: jnp.sin(x) + jnp.cos(x) + jnp.exp(x), x) == 3

    def kept(x):
        first = jnp.sin(x)
        return jnp.cos(jnp.cos(jnp.cos(first))) + first

    assert peak(kept, x) == 3
    assert peak(jnp.sin, x, aliased=1) == 0


def test_peak_memory_of_loops_and_calls_is_counted_exactly():
    x = shape(100)
    inner = jax.jit(lambda x: jnp.sin(jnp.cos(jnp.exp(x))))
    assert peak(lambda x: inner(x) + inner(x), x) == 3

    def stacked(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(x), x), x, length=7)[1]

    # Seven in a stack, the carry, and the result of the body.
    assert peak(stacked, x) == pytest.approx(9, abs=0.05)


@pytest.fixture(scope="module")
def estimator():
    wide = {"num_scales": 1, "encoder_width": 16, "decoder_width": 16}  # large enough to be sharded
    return estimate.Estimator(tiny_config(model=wide))


def test_the_size_of_the_training_state_is_exact(estimator):
    params = sum(math.prod(p.shape) for p in jax.tree.leaves(estimator.state.params))
    assert estimator.num_params == params
    one = estimate.planned_mesh(1, 1)
    held = {
        name: estimate.bytes_on_device(getattr(estimator.state, name), one)
        for name in ("params", "opt_state")
    }
    assert held["params"] == FLOAT * params
    assert held["opt_state"] == pytest.approx(2 * FLOAT * params, rel=1e-3)  # and its counters
    # Kernels of at least 4,096 numbers, whose output channels four devices share.
    kernels = {p.shape[-4:] for p in jax.tree.leaves(estimator.state.params) if p.ndim >= 4}
    large = {s for s in kernels if math.prod(s) >= 4096 and s[-1] % 4 == 0}
    sizes = [
        p.size // 4 if p.shape[-4:] in large else p.size
        for p in jax.tree.leaves(estimator.state.params)
    ]
    mesh = estimate.planned_mesh(8, 4)
    assert large and estimate.bytes_on_device(estimator.state.params, mesh) == FLOAT * sum(sizes)


def test_rematerialization_and_more_devices_reduce_the_estimated_memory(estimator):
    def need(remat, devices=1, fsdp=1, micro_batches=1):
        return estimator.need(Setting("float32", remat, fsdp, micro_batches), devices)

    needs = [need(remat) for remat in POLICIES]
    activations = [n.activations for n in needs]
    assert activations == sorted(activations, reverse=True) and activations[0] > activations[1]
    assert len({n.state for n in needs}) == 1
    for remat in POLICIES:
        # Only arrays that grow with the batch are divided among devices or micro-batches.
        assert need(remat, 4).activations < 0.3 * need(remat).activations
        assert need(remat, 4).state == need(remat).state
        assert need(remat, 1, micro_batches=4).activations == need(remat, 4).activations
        shared = need(remat, 4, fsdp=4)
        assert shared.state < need(remat, 4).state and shared.peak < need(remat, 4).peak
        assert shared.activations == need(remat, 4).activations <= need(remat, 4).peak
    with pytest.raises(ValueError, match="train.batch_size=16 cannot be divided among 5 devices"):
        need("none", 5)


def test_rematerialization_adds_the_expected_flops(estimator):
    none, norm_act, cell, group = (
        estimator.flops(Setting("float32", remat, 1, 1), 1) for remat in POLICIES
    )
    # norm_act repeats no convolution, only the small products of the gates.
    assert none < norm_act < 1.01 * none < cell <= group < 1.5 * none
    halves = 2 * estimator.flops(Setting("float32", "none", 1, 1), 2)
    assert none < halves < 1.1 * none  # the spectral norms are computed by every device


class Fake:
    """An estimator of 1 GB of state, and of activations by remat, dtype and number of examples."""

    num_params = 7

    def need(self, setting, devices):
        weight = {"none": 16, "norm_act": 8, "cell": 4, "group": 2}[setting.remat]
        half = 2 if setting.dtype == "bfloat16" else 1
        examples = 16 // devices / setting.micro_batches
        activations = weight * examples / half
        return MemoryEstimate(
            *(int(plan.GB * n) for n in (1 / setting.fsdp, activations, activations))
        )


@pytest.mark.parametrize(
    ("usable", "chosen"),
    [
        (36, Setting("float32", "none", 1, 1)),
        (18, Setting("float32", "norm_act", 1, 1)),
        (9.4, Setting("float32", "cell", 1, 1)),
        (5.1, Setting("float32", "group", 1, 1)),
        (4.9, Setting("float32", "group", 2, 1)),
        (4.2, Setting("float32", "group", 8, 1)),
        (4, Setting("bfloat16", "group", 1, 1)),
        (2.7, Setting("bfloat16", "group", 2, 1)),
        (1.8, Setting("bfloat16", "group", 2, 2)),
        (0.9, None),
    ],
)
def test_the_setting_that_changes_least_is_chosen(usable, chosen):
    requested = Setting("float32", "none", 1, 1)
    budget = plan.Budget(8, usable / (1 - plan.HEADROOM))
    assert plan.choose(Fake(), 16, budget, requested) == chosen


def test_a_plan_that_does_not_fit_says_what_would_fit():
    requested = Setting("float32", "none", 1, 1)
    refusal = " ".join(plan.explain_no_fit(Fake(), 16, plan.Budget(8, 1.55), requested))
    assert "cannot fit: even remat=group, bfloat16, mesh.fsdp=8" in refusal
    assert "need 1.12 GB of 1.55 (less 30%)" in refusal
    assert "16 such devices with remat=group, bfloat16, mesh.fsdp=16" in refusal
    assert "8 device(s) of 1.61 GB" in refusal


def test_a_report_has_a_line_for_each_policy_and_ends_with_flags(estimator, monkeypatch):
    monkeypatch.setattr(plan, "Estimator", lambda config: estimator)
    config = tiny_config()
    lines, fits = plan.report(config, plan.Budget(4, 16.0, rate=100.0))
    text = "\n".join(lines)
    assert fits and f"{estimator.num_params:,} parameters" in lines[0]
    assert [line.split()[0] for line in lines if "fits " in line][:4] == list(POLICIES)
    assert ">= " in text and "<= " in text
    flags = dict(flag.removeprefix("--config.").split("=") for flag in lines[-1].split())
    config.update_from_flattened_dict(
        {k: type(config[k.split(".")[0]][k.split(".")[1]])(v) for k, v in flags.items()}
    )
    assert (config.mesh.data, config.mesh.fsdp, config.model.remat) == (4, 1, "none")


def test_the_flags_divide_the_devices_as_chosen(estimator, monkeypatch):
    monkeypatch.setattr(plan, "Estimator", lambda config: estimator)
    monkeypatch.setattr(plan, "choose", lambda *_: Setting("float32", "cell", 4, 2))
    lines, _ = plan.report(tiny_config(), plan.Budget(8))
    assert lines[-1] == (
        "--config.model.remat=cell --config.model.dtype=float32 --config.mesh.data=2 "
        "--config.mesh.fsdp=4 --config.train.accumulation_steps=2"
    )


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"devices": 0}, "--devices must be at least 1 and at most 1000000, not 0"),
        ({"devices": 2, "hbm": 0}, "--hbm must be a positive number of GB, at most 1000000, not 0"),
        ({"devices": 10**9}, "--devices must be at least 1 and at most 1000000, not 1000000000"),
        ({"devices": 2, "hbm": math.inf}, "--hbm must be a positive .*, not inf"),
        ({"devices": 2, "rate": math.inf}, "--rate must be a positive .*, not inf"),
        ({"devices": 2, "rate": -1.5}, "--rate must be a positive number of TFLOP/s.*, not -1.5"),
    ],
)
def test_invalid_budgets_are_errors_that_name_them(budget, message):
    with pytest.raises(ValueError, match=message):
        plan.Budget(**budget)


def test_missing_keys_of_the_config_are_named():
    with pytest.raises(ValueError, match="--config.data.image_size=64 --config.data.channels=3"):
        plan.report(folder.get_config(), plan.Budget(2))
    with pytest.raises(ValueError, match="among 5 devices: take --devices=4 or .*batch_size=20"):
        plan.report(tiny_config(), plan.Budget(5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices=-1"], "--devices must be at least 1 and at most 1000000, not -1"),
        (["--devices=2", "--topology=v5e:2x2"], "give either --devices=N or --topology="),
        (["--topology=v5e:2x2", "--hbm=16"], "--hbm and --rate go with --devices"),
        (["--topology=v5e-8"], "topology 'v5e-8' is neither GPUs, as h100, h100:8"),
    ],
)
def test_errors_of_the_command_are_one_line(commands, arguments, message):
    done = commands.run("plan", "--config=configs/digits.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_name_of_a_tpu_slice_gives_its_devices_and_memory():
    slice_ = topology.parse("v5e:4x4")
    assert (slice_.num_devices, slice_.hbm) == (16, 16 * 2**30)
    assert topology.parse("v4:2x2x2").num_devices == 8
    for name in ("v5e", "v5e:0x2", "v9:2x2", "v5e:2", "v5e:2x2x2x2", "v5e:2x"):
        with pytest.raises(ValueError, match="such as v5e:4x4 or v4:2x2x2; .* generations: v4"):
            topology.parse(name)


def test_a_missing_compiler_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'nvae_jax\[tpu\]'"):
        topology.parse("v5e:2x2").devices()


def test_the_report_of_a_compiled_step_has_its_memory_and_flops(estimator, monkeypatch):
    # This machine and its compiler stand in for a TPU slice.
    monkeypatch.setattr(tpu.Slice, "devices", lambda slice_: jax.devices()[:1])
    monkeypatch.setattr(tpu.Slice, "platform", "cpu")
    slice_ = tpu.Slice("v5e", (1, 1))
    lines, fits = compiled.report(tiny_config(model={"remat": "cell"}), slice_)
    assert fits and lines[0].startswith("v5e:1x1: 1 devices of 17.2 GB, 16 images per device")
    assert "collectives per step: none" in lines
    arguments, temporaries = (float(n) for n in re.findall(r"(?:ts|es) ([\d.]+)", lines[1])[:2])
    need = estimator.need(Setting("float32", "cell", 1, 1), 1)
    assert need.state / plan.GB == pytest.approx(arguments, abs=0.01)
    assert 0.5 < need.peak / plan.GB / temporaries < 2


def compiled_step(gigabytes):
    share = int(gigabytes * plan.GB / 4)
    collectives = count_collectives(hlo.parse(TPU_TEXT))
    return compiled.Compiled(
        share, share, share, 3 * share, collectives, KernelCounts(7, 10**9), 1.0
    )


def test_the_report_says_whether_a_step_fits_and_what_is_too_large(monkeypatch):
    slice_ = tpu.Slice("v5e", (2, 2))
    monkeypatch.setattr(compiled, "compile_step", lambda *_: compiled_step(12.3))
    lines, fits = compiled.report(tiny_config(), slice_)
    assert fits and "in total 12.30: it fits" in lines[1]
    assert "  all-reduce: 11, 0.0 MB; 11 of them below 64 KiB" in lines
    assert "  and more in 1 loop(s) of unknown length" in lines

    def refuse(*_):
        raise compiled.OutOfMemory("RESOURCE_EXHAUSTED: Ran out. Used 18.10G of 15.75G hbm. More")

    monkeypatch.setattr(compiled, "compile_step", refuse)
    lines, fits = compiled.report(tiny_config(), slice_)
    assert not fits and lines[1].startswith("cannot fit: Used 18.10G of 15.75G hbm")


PROGRAM = """
import json, jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from nvae_jax.planning import hlo
from nvae_jax.planning.collectives import count_collectives

mesh = jax.make_mesh((8,), ("data",))
over, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

def rounds(x, stack):
    def body(x, w):
        x = x @ w
        return x - x.mean(0, keepdims=True), None  # a sum over devices of 16 floats
    return jax.lax.scan(body, x, stack)[0].max()   # and one of a single float

def count(function, *arrays, **kwargs):
    compiled = jax.jit(function, **kwargs).lower(*arrays).compile()
    found = count_collectives(hlo.parse(compiled.as_text()))
    return [found.count, found.bytes, found.small, found.uncounted_loops]

x, stack = jax.ShapeDtypeStruct((32, 16), "float32"), jax.ShapeDtypeStruct((5, 16, 16), "float32")
long = jax.ShapeDtypeStruct((8 * 4096, 16), "float32")
print(json.dumps([
    count(rounds, x, stack, in_shardings=(over, whole)),
    count(jnp.negative, long, in_shardings=(over,), out_shardings=whole),
]))
"""


def test_collectives_of_a_compiled_program_for_eight_devices_are_counted(commands):
    with commands.start(PROGRAM, environment=of_devices(8)) as process:
        out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    rounds, gathered = json.loads(out.splitlines()[-1])
    assert rounds == [{"all-reduce": 6}, {"all-reduce": 5 * 64 + 4}, {"all-reduce": 6}, 0]
    assert gathered[:2] == [{"all-gather": 1}, {"all-gather": 8 * 4096 * 16 * 4}]
    assert gathered[2] == {"all-gather": 0}


# As TPU's compiler writes: a loop's length only in its condition, types with layouts, tuples,
# asynchronous pairs.
TPU_TEXT = """
HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%body (state: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %state = (s32[]{:T(128)}, bf16[2,8]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %both = (f32[8]{0:T(128)S(1)}, /*index=1*/f32[8]{0:T(128)S(1)}) all-reduce(%x, %y), to_apply=%sum
  ROOT %next = (s32[]{:T(128)}, bf16[2,8]{1,0:T(8,128)(2,1)S(1)}) tuple(%i, %z)
}

%condition (state: (s32[], bf16[2,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%unknown (state: (s32[], bf16[2,8])) -> pred[] {
  ROOT %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (p: bf16[2,8]) -> bf16[2,8] {
  %gather-start = (bf16[2,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%p), dimensions={0}
  %gather = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather-done(%gather-start)
  %first = (s32[], bf16[2,8]{1,0}) while(%tuple), condition=%condition, body=%body
  ROOT %second = (s32[], bf16[2,8]{1,0}) while(%first), condition=%unknown, body=%body
}
"""


def test_parts_of_one_collective_count_once():
    part = 'all-gather(%{}), channel_id=1, frontend_attributes={{chain_id="{}"}}, dimensions={{0}}'
    parts = [(1, "p", "0"), (2, "p", "0"), (3, "q", "1")]
    lines = [f"  %g.{n} = f32[16]{{0}} {part.format(of, chain)}" for n, of, chain in parts]
    text = "\n".join(["ENTRY %main (p: f32[2]) -> f32[16] {", *lines, "}"])
    found = count_collectives(hlo.parse(text))
    assert found.count == {"all-gather": 2} and found.bytes == {"all-gather": 2 * 64}


def test_collectives_in_the_text_of_a_tpu_program_are_counted():
    found = count_collectives(hlo.parse(TPU_TEXT))
    assert found.count == {"all-gather": 1, "all-reduce": 10 + 1}
    assert found.bytes == {"all-gather": 16 * 8 * 2, "all-reduce": 11 * 2 * 8 * 4}
    assert found.uncounted_loops == 1
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.parse("")
