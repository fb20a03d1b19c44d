"""Times training, sampling, evaluation and compilation, relative to the machine's peak rate.

  python benchmarks/run.py [--config=configs/mnist.py] [--batch=8,32] [--reps=10] [--out=PATH]
      [--what=train,sample,eval,compile,depthwise,data,pytorch]

It works with any config and device, and needs no data set: the images are random. A large matrix
product and a large copy are timed next to every sample (`machine.py`); the floor is the time that
the arithmetic (convolutions and matrix products) would take at the rate of the fastest such
product. Prints medians with minimum and maximum, and writes everything as JSON. Set
JAX_COMPILATION_CACHE_DIR to cache compiled programs; `compile` does not use the cache. `pytorch`,
which is not in the default, requires PyTorch and times the same functions in it (`pytorch.py`).
"""

import pathlib
import subprocess
import sys
import tempfile
import time
from functools import partial

import depthwise
import jax
import jax.numpy as jnp
import machine
import numpy as np
import record
from absl import flags

from nvae_jax import build, cli, config_file, schema, sharding, steps
from nvae_jax.ops import compiler
from nvae_jax.planning.flops import count_flops

HERE = pathlib.Path(__file__).resolve().parent
USUAL = ("train", "sample", "eval", "compile", "depthwise", "data")
KINDS = (*USUAL, "pytorch")
CONFIG = flags.DEFINE_string(
    "config", str(HERE.parent / "configs" / "mnist.py"), "configuration file"
)
CHANGES = cli.define_changes()
BATCH = flags.DEFINE_list("batch", ["8", "32"], "batch sizes, for training, sampling, evaluation")
WHAT = flags.DEFINE_list("what", list(USUAL), f"of {', '.join(KINDS)}")
REPS = flags.DEFINE_integer("reps", 10, "samples of each time", 1)
OUT = flags.DEFINE_string("out", str(HERE / "results" / "run.json"), "JSON file to write")


def make_images(experiment, batch):
    """Random zeros and ones (batch, H, W, C), placed on the devices as in training."""
    rng = np.random.default_rng(0)
    images = (rng.random((batch, *experiment.image_shape)) > 0.5).astype(np.float32)
    return sharding.to_devices(experiment.mesh, images)


def forward_flops(experiment, state, batch):
    """Floating-point operations of a forward pass through the whole model."""
    images = jax.ShapeDtypeStruct((batch, *experiment.image_shape), jnp.float32)
    rngs = {"latent": jax.random.key(0)}
    model = experiment.portable().model.clone(unroll=1)
    run = partial(model.apply, train=True, mutable=["batch_stats"], rngs=rngs)
    return count_flops(jax.make_jaxpr(run)(state.variables, images))


def peak_memory(compiled):
    """Peak memory of a program in bytes, according to the compiler; None if it does not know."""
    use = compiled.memory_analysis()
    if use is None:
        return None
    sizes = (use.argument_size_in_bytes, use.output_size_in_bytes, use.temp_size_in_bytes)
    return sum(sizes) - use.alias_size_in_bytes


def measure_train(experiment, state, batch, ceilings):
    """Times a whole update: forward, backward, regularisers and optimiser."""
    images = make_images(experiment, batch)
    compiled = experiment.train_step().lower(state, images).compile()
    holder = [jax.tree.map(jnp.copy, state)]  # the step donates its state

    def step():
        holder[0], metrics = compiled(holder[0], images)
        return holder[0], metrics

    work = 3 * forward_flops(experiment, state, batch)  # a backward pass counts as two forward ones
    return work, peak_memory(compiled), machine.sample(step, ceilings, REPS.value)


def measure_sample(experiment, state, batch, ceilings):
    """Times drawing images from the prior at temperature 0.7."""
    model = experiment.portable().model.clone(unroll=1)
    step = steps.make_sample_step(model, experiment.likelihood)
    arguments = (state.variables, jax.random.key(0), np.arange(batch), 0.7)
    work = count_flops(jax.make_jaxpr(step)(*arguments))
    step = steps.make_sample_step(experiment.model, experiment.likelihood)
    return _measure(step, arguments, work, ceilings)


def measure_eval(experiment, state, batch, ceilings):
    """Times the bound: encoder, one posterior draw, decoder, likelihood."""
    encode = steps.make_encode_step(experiment.model)
    bound = steps.make_bound_step(experiment.model, experiment.likelihood)

    def step(variables, images, key):
        return bound(variables, encode(variables, images), images, key, np.arange(len(images)))

    arguments = (state.variables, make_images(experiment, batch), jax.random.key(0))
    return _measure(step, arguments, forward_flops(experiment, state, batch), ceilings)


def _measure(step, arguments, work, ceilings):
    compiled = jit(step).lower(*arguments).compile()
    times = machine.sample(lambda: compiled(*arguments), ceilings, REPS.value)
    return work, peak_memory(compiled), times


def jit(step):
    """`jax.jit` with the options that the experiment compiles with."""
    return jax.jit(step, compiler_options=compiler.options(jax.default_backend()))


MEASURES = {"train": measure_train, "sample": measure_sample, "eval": measure_eval}


def measure_steps(experiment, kinds, batches, ceilings):
    """One row for each of `kinds` and `batches`."""
    rows = []
    if kinds:
        state = experiment.create_state(make_images(experiment, 1))
    for kind in kinds:
        for batch in batches:
            work, peak, times = MEASURES[kind](experiment, state, batch, ceilings)
            row = {"what": kind, "batch": batch, "seconds": machine.spread(times)}
            row.update(flop=work, peak_bytes=peak)
            rows.append(row)
    for row in rows:  # at the end, when the fastest matrix product is known
        row["images_per_second"] = row["batch"] / row["seconds"]["median"]
        row["floor_seconds"] = row["flop"] / ceilings.flops
        row["ratio_to_floor"] = row["seconds"]["median"] / row["floor_seconds"]
    return rows


def measure_compilation(experiment, batch):
    """Seconds until the first update: initial state, and the step without and with a cache."""
    images, rows = make_images(experiment, batch), []
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        state = experiment.abstract_state()
        jax.clear_caches()  # an earlier measurement may have compiled the same program
        init = machine.timed(lambda: experiment.create_state(images))
        for cache in ("empty", "warm"):
            jax.clear_caches()
            start = time.perf_counter()
            lowered = experiment.train_step().lower(state, images)
            middle = time.perf_counter()
            lowered.compile()
            row = {"lower": middle - start, "compile": time.perf_counter() - middle}
            rows.append({"what": "compile", "batch": batch, "cache": cache, "seconds": row})
        jax.config.update("jax_compilation_cache_dir", None)
    return [{"what": "init", "seconds": init}, *rows]


def measure_depthwise():
    """The rows of `benchmarks/depthwise.py` at its first two sizes."""
    rows = [row for case in depthwise.CASES[:2] for row in depthwise.run_case(*case, REPS.value)]
    depthwise.print_rows(rows)
    return [{"what": "depthwise", **row} for row in rows]


def measure_pytorch(experiment, batches, ceilings):
    """The rows of `pytorch.py`."""
    try:
        import pytorch
    except ImportError as error:
        raise ValueError(f"--what=pytorch: {error}; pip install -e '.[torch]'") from error
    variables = experiment.create_state(make_images(experiment, 1)).variables
    rows = []
    for batch in batches:
        images = make_images(experiment, batch)
        rows += pytorch.measure(experiment, variables, images, ceilings, REPS.value)
    pytorch.print_rows(rows)
    return rows


def print_steps(rows):
    print(f"{'':7}{'batch':>6}  {'seconds (min to max)':27}{'images/s':>9}", end="")
    print(f"{'GFLOP':>8}{'floor':>8}{'ratio':>7}{'peak GB':>9}")
    for row in rows:
        t = row["seconds"]
        times = f"{t['median']:.3f} ({t['min']:.3f} to {t['max']:.3f})"
        peak = f"{row['peak_bytes'] / 1e9:9.2f}" if row["peak_bytes"] else f"{'?':>9}"
        print(
            f"{row['what']:7}{row['batch']:6}  {times:27}{row['images_per_second']:9.1f}"
            f"{row['flop'] / 1e9:8.1f}{row['floor_seconds']:8.3f}{row['ratio_to_floor']:7.2f}{peak}"
        )


def main(_):
    unknown = set(WHAT.value) - set(KINDS)
    if unknown:
        raise ValueError(f"--what: unknown {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    batches = [int(batch) for batch in BATCH.value]
    config = build.resolve(schema.changed(config_file.load(CONFIG.value), CHANGES()))
    experiment, ceilings = build.build(config), machine.Ceilings()
    beside = measure_pytorch(experiment, batches, ceilings) if "pytorch" in WHAT.value else []
    rows = measure_steps(experiment, [k for k in MEASURES if k in WHAT.value], batches, ceilings)
    ceiling = {"matmul_flops": ceilings.flops, "copy_bytes_per_second": ceilings.bandwidth}
    print(f"{ceilings.flops / 1e9:.0f} GFLOP/s, {ceilings.bandwidth / 1e9:.1f} GB/s")
    if rows:
        print_steps(rows)
    rows += beside
    if "compile" in WHAT.value:
        compilation = measure_compilation(experiment, batches[-1])
        print(*compilation, sep="\n")
        rows += compilation
    if "depthwise" in WHAT.value:
        rows += measure_depthwise()
    if "data" in WHAT.value:  # writes a file of its own
        subprocess.run([sys.executable, str(HERE / "data.py")], check=True)
    record.write(OUT.value, rows, **ceiling, config=config.to_dict(), reps=REPS.value)


if __name__ == "__main__":
    cli.run(main)
