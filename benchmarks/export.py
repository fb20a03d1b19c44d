"""Compares the speed of an exported sampler with that of the original model.

    python benchmarks/export.py --workdir=DIR [--batch_sizes=1,16,64] [--out=PATH]

Both draw the same images by turns, so that other load on the machine affects both. Prints the
median milliseconds per call, and the largest difference between the images.
"""

import statistics
from functools import partial

import jax
import machine
import numpy as np
import record
from absl import flags

from nvae_jax import api, cli
from nvae_jax.export import make_sampler
from nvae_jax.folding import fold

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
SIZES = flags.DEFINE_list("batch_sizes", ["1", "16", "64"], "images per call")
CALLS = flags.DEFINE_integer("calls", 30, "calls of each", 1)
OUT = flags.DEFINE_string("out", "benchmarks/results/export_cpu.json", "JSON file; '': none")


def samplers(run, batch_size):
    """{name: compiled sampler}: one of the trained model, one exported and read back."""
    experiment = run.experiment
    options = {"batch_size": batch_size, "padding": experiment.data.padding}
    arguments = (np.uint32(0), np.int32(0), np.float32(0.7))
    model, variables = fold(experiment.model, run.variables)
    folded = jax.jit(make_sampler(model, experiment.likelihood, variables, **options))
    content = jax.export.export(folded)(*arguments).serialize()
    plain = make_sampler(experiment.model, experiment.likelihood, run.variables, **options)
    functions = {
        "unfolded": jax.jit(plain),
        "exported": jax.jit(jax.export.deserialize(bytearray(content)).call),
    }
    return {
        name: partial(_draw, function.lower(*arguments).compile(), arguments)
        for name, function in functions.items()
    }


def _draw(sampler, arguments):
    return np.asarray(sampler(*arguments))


def measure(calls, number):
    """{name: median milliseconds} of calls that alternate."""
    seconds = {name: [] for name in calls}
    for _ in range(number):
        for name, call in calls.items():
            seconds[name].append(machine.timed(call))
    return {name: 1e3 * statistics.median(some) for name, some in seconds.items()}


def main(_):
    run, rows = api.load(WORKDIR.value), []
    for size in map(int, SIZES.value):
        calls = samplers(run, size)
        difference = np.abs(calls["unfolded"]() - calls["exported"]()).max()
        medians = {name: round(ms, 3) for name, ms in measure(calls, CALLS.value).items()}
        rows.append({"batch_size": size, **medians, "difference": float(difference)})
        print(
            f"batch {size:3}: {medians['unfolded']:9.2f} ms unfolded, "
            f"{medians['exported']:9.2f} ms exported, largest difference {difference:.1e}"
        )
    record.write(
        OUT.value, rows, model=run.metadata()["model"], calls=CALLS.value, unit="ms a call, median"
    )


if __name__ == "__main__":
    cli.run(main)
