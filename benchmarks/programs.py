"""The programs that `accelerator.py` times: training steps, sampling, convolutions, peak rates."""

from dataclasses import dataclass
from functools import partial

import depthwise
import jax
import jax.numpy as jnp
import kernel_times
import machine
import numpy as np
from side_by_side import Program

from nvae_jax import steps
from nvae_jax.ops import compiler
from nvae_jax.planning import hlo
from nvae_jax.planning.kernels import count_kernels

STACK = 8  # convolutions per program: a single one is faster than its launch
# (B, H, W, C) of depthwise convolutions: mnist's coarse and fine scale, cifar10's, ffhq256's.
SIZES = (
    (200, 8, 8, 768),
    (200, 16, 16, 384),
    (32, 16, 16, 1536),
    (4, 128, 128, 360),
    (4, 16, 16, 2880),
)
SMALL_SIZES = ((2, 8, 8, 32),)


@dataclass(frozen=True)
class Run:
    """How to measure: samples of each, whether to name kernels, whether only to try the script."""

    reps: int = 10
    kernels: bool = True
    small: bool = False


def step(variant, run):
    """The `Program` of a training step."""
    experiment = variant.experiment()

    def lower():
        shapes = experiment.abstract_state(), experiment.abstract_images()
        return experiment.train_step().lower(*shapes)

    def update(compiled):
        state, batch = filled(experiment.abstract_state()), filled(experiment.abstract_images())
        holder = [state.replace(step=jnp.ones_like(state.step))]

        def run_once():
            holder[0], metrics = compiled(holder[0], batch)
            return metrics

        return run_once

    def measure(compiled):
        once = update(compiled)
        found = _rate(machine.sample_queued(once, run.reps), variant.batch)
        return found | {"loss": float(once()["loss"])}

    def explain(compiled):
        return kernel_times.measure(update(compiled)) | _traffic(compiled)

    row = {"what": "step", "name": variant.name, "config": variant.config, "batch": variant.batch}
    row["changes"] = {**variant.changes, **variant.options}
    return Program(row, lower, measure, variant.options, explain if run.kernels else None)


def _traffic(compiled):
    """Kernels and the GB that they read and write, by the text of a program for GPUs."""
    if jax.default_backend() != "gpu":
        return {}
    found = count_kernels(hlo.parse(compiled.as_text()))
    return {"kernels_by_text": found.count, "moved_gb_by_text": round(found.bytes / 1e9, 2)}


def sample(variant, run):
    """The `Program` of drawing images from the prior."""
    experiment = variant.experiment()
    draw = steps.make_sample_step(experiment.model, experiment.likelihood)
    draw = jax.jit(draw, compiler_options=compiler.options(jax.default_backend()))
    drawn = jax.random.key(0), np.arange(variant.batch), 0.7

    def measure(compiled):
        variables = filled(experiment.abstract_variables())
        call = partial(compiled, variables, *drawn)
        return _rate(machine.sample_queued(call, run.reps), variant.batch)

    row = {"what": "sample", "name": variant.name, "batch": variant.batch}
    return Program(row, lambda: draw.lower(experiment.abstract_variables(), *drawn), measure)


def _rate(times, batch):
    spread = machine.spread(times)
    found = {f"{name}_ms": round(1e3 * spread[name], 3) for name in ("median", "min", "max")}
    return {**found, "images_per_second": round(batch / spread["median"], 1)}


def filled(shapes):
    """Random arrays of these shapes: parameters around 0, everything else in [0, 1). The time of a
    step does not depend on its values, if they are finite and varied."""
    block = np.random.default_rng(0).random(2**20, np.float32)

    def fill(path, leaf):
        numbers = np.zeros(leaf.shape, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            centred = 0.1 * (block - 0.5) if "params" in jax.tree_util.keystr(path) else block
            numbers = np.resize(centred, leaf.shape).astype(leaf.dtype)
        return jax.device_put(numbers, leaf.sharding)

    return jax.tree_util.tree_map_with_path(fill, shapes)


DIRECTIONS = {
    "forward": lambda f, x, g, w: f(x, w),
    "input gradient": lambda f, x, g, w: jax.vjp(lambda x: f(x, w), x)[1](g)[0],
    "kernel gradient": lambda f, x, g, w: jax.vjp(lambda w: f(x, w), w)[1](g)[0],
}


def convolutions(run):
    """`Program`s of depthwise convolutions in bfloat16."""
    return [
        _convolution(size, name, function, direction, run)
        for size in (SMALL_SIZES if run.small else SIZES)
        for name, function in depthwise.jax_operations("stride 1").items()
        for direction in DIRECTIONS
    ]


def _convolution(size, name, function, direction, run):
    one = partial(DIRECTIONS[direction], function)
    image = jax.ShapeDtypeStruct(size, jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((depthwise.KERNEL, depthwise.KERNEL, 1, size[-1]), jnp.bfloat16)
    shapes = ([image] * STACK, [image] * STACK, kernel)
    many = jax.jit(lambda xs, gs, w: [one(x, g, w) for x, g in zip(xs, gs, strict=True)])

    def measure(compiled):
        arrays = jax.tree.map(
            lambda a: jax.random.normal(jax.random.key(0), a.shape, a.dtype), shapes
        )
        times = machine.sample_queued(lambda: compiled(*arrays), run.reps)
        micro = 1e6 * machine.spread(times)["median"] / STACK
        floor = 2 * np.prod(size) * 2  # one read and one write
        return {"us": round(micro, 1), "gb_per_second": round(floor / micro / 1e3, 1)}

    row = {"what": "depthwise", "size": "x".join(map(str, size))}
    row |= {"implementation": name, "direction": direction}
    return Program(row, lambda: many.lower(*shapes), measure)


def ceilings(run):
    """The `Program`s that measure the peak rates of the device."""

    def measure(_):
        rates = machine.Ceilings(jnp.bfloat16)
        for _ in range(run.reps):
            rates.sample()
        return {"copy_gb_per_second": rates.bandwidth / 1e9, "bf16_tflops": rates.flops / 1e12}

    return [Program({"what": "ceilings"}, None, measure)]
