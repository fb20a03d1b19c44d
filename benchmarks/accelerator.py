"""Measures the most important numbers on an accelerator within a few minutes.

  python benchmarks/accelerator.py [--only=PART,...] [--minutes=8] [--out=PATH]
      [--config.KEY=VALUE] [--variant=NAME:config=mnist,batch=200,KEY=VALUE,xla_OPTION=VALUE]...

Parts, most important first:
  golden     the largest errors of the published numbers in float32
  mnist, cifar10, celeba64, ffhq256   a training step at 200, 32, 16 and 4 images in bfloat16: time,
             compilation, memory, kernels (ffhq256 with each policy of remat)
  sample     200 images of the mnist model
  depthwise  5x5 convolutions, each implementation, forward and both gradients
  ceilings   bytes per second of a copy, and operations per second of a bfloat16 product
  kernels    the slowest kernels of each timed step

Programs are compiled in parallel and then run one at a time. The file of results is rewritten after
each of them, so that an interruption loses nothing that was measured. Parts that do not fit into
the time are listed as skipped, or as not compiled. `--variant` times a training step of any config
with other keys and compiler options, before all others. Compiled programs are cached only if
JAX_COMPILATION_CACHE_DIR is set; a cached program needs no compilation.
"""

import os
import pathlib
import sys
import time

import golden_errors
import programs
import record
from absl import flags
from side_by_side import Results, Runner, seconds_left
from variants import STEPS, parse

from nvae_jax import cli

HERE = pathlib.Path(__file__).resolve().parent
# Parts that are compiled together, with the minimum number of seconds that they take.
WAVES = (
    (("mnist", "cifar10", "sample", "golden"), 60),
    (("depthwise", "ceilings", "celeba64"), 45),
    (("ffhq256",), 90),
)
PARTS = tuple(part for parts, _ in WAVES for part in parts)
KINDS = (*PARTS, "kernels")
ONLY = flags.DEFINE_list("only", None, f"of {', '.join(KINDS)}; default: all, or none but variants")
VARIANTS = flags.DEFINE_multi_string("variant", [], "a step to time beside: see above")
MINUTES = flags.DEFINE_float("minutes", 8.0, "time limit", 0.1)
BATCH = flags.DEFINE_integer("batch", None, "batch size of all steps, instead of the defaults", 1)
SMALL = flags.DEFINE_bool("small", False, "tiny sizes of everything else, to test the script")
REPS = flags.DEFINE_integer("reps", 10, "samples of each time", 1)
OUT = flags.DEFINE_string("out", str(HERE / "results" / "accelerator.json"), "JSON file to write")
CHANGES = cli.define_changes()


def wanted():
    """The requested parts."""
    if ONLY.value is None:
        return ("kernels",) if VARIANTS.value else KINDS
    if unknown := set(ONLY.value) - set(KINDS):
        raise ValueError(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    return tuple(ONLY.value)


def of_part(part, run):
    """The `Program`s of a part."""
    if part in STEPS:
        return [programs.step(variant, run) for variant in STEPS[part](CHANGES(), BATCH.value)]
    return {
        "golden": golden_errors.programs,
        "sample": lambda run: [programs.sample(STEPS["mnist"](CHANGES(), BATCH.value)[0], run)],
        "depthwise": programs.convolutions,
        "ceilings": programs.ceilings,
    }[part](run)


def _least(asked, first=0):
    """The minimum number of seconds for the waves from number `first` on."""
    return sum(least for parts, least in WAVES[first:] if set(parts) & set(asked))


def main(_):
    deadline = time.monotonic() + 60 * MINUTES.value
    asked, results = wanted(), Results(OUT.value, minutes=MINUTES.value, changes=CHANGES())
    run = programs.Run(reps=REPS.value, kernels="kernels" in asked, small=SMALL.value)
    runner = Runner(results, deadline)
    variants = [parse(text, CHANGES(), BATCH.value) for text in VARIANTS.value]
    if variants:
        runner.run([programs.step(v, run) for v in variants], later=_least(asked))
    for i, (parts, least) in enumerate(WAVES):
        parts = [part for part in parts if part in asked]
        if parts and seconds_left(deadline) < least:
            results.add({"what": "skipped", "parts": parts})
        elif parts:
            wave = [program for part in parts for program in of_part(part, run)]
            runner.run(wave, later=_least(asked, i + 1))
    record.print_written(OUT.value)
    sys.stdout.flush()
    os._exit(0)  # running compilations cannot be stopped otherwise


if __name__ == "__main__":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
    cli.run(main)
