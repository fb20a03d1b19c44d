"""Everything worth measuring on an accelerator that is there for some minutes only.

  python benchmarks/accelerator.py [--only=PART,...] [--minutes=8] [--out=PATH]
      [--config.KEY=VALUE] [--variant=NAME:config=mnist,batch=200,KEY=VALUE,xla_OPTION=VALUE]...

Parts, in the order of their worth:
  golden     the published numbers in float32: the largest errors
  mnist, cifar10, celeba64, ffhq256   a training step at 200, 32, 16 and 4 images in bfloat16: time,
             compilation, memory, kernels (ffhq256 with each policy of remat)
  sample     200 images of the mnist model
  depthwise  5x5 convolutions, each implementation, forward and both gradients
  ceilings   bytes a second of a copy, and operations of a bfloat16 product
  kernels    of each step that is timed, those that take longest

Programs are compiled side by side and then run one at a time. The results are in a file, whole
after each of them, so that being cut off loses only what was not measured. A part that the minutes
do not suffice for is named as skipped, or as not compiled. `--variant` times a training step of any
config with other keys and options of the compiler, before all others. Compiled programs are kept
only where JAX_COMPILATION_CACHE_DIR says so: their compilation then takes no time.
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
# Those of a line are compiled together; with the seconds that they take at least.
WAVES = (
    (("mnist", "cifar10", "sample", "golden"), 60),
    (("depthwise", "ceilings", "celeba64"), 45),
    (("ffhq256",), 90),
)
PARTS = tuple(part for parts, _ in WAVES for part in parts)
KINDS = (*PARTS, "kernels")
ONLY = flags.DEFINE_list("only", None, f"of {', '.join(KINDS)}; default: all, or none but variants")
VARIANTS = flags.DEFINE_multi_string("variant", [], "a step to time beside: see above")
MINUTES = flags.DEFINE_float("minutes", 8.0, "to be done in", 0.1)
BATCH = flags.DEFINE_integer("batch", None, "another batch size for all steps", 1)
SMALL = flags.DEFINE_bool("small", False, "tiny sizes of all else, to try the script")
REPS = flags.DEFINE_integer("reps", 10, "samples of each", 1)
OUT = flags.DEFINE_string("out", str(HERE / "results" / "accelerator.json"), "where the JSON goes")
CHANGES = cli.define_changes()


def wanted():
    """The parts asked for."""
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
    """Seconds that the waves from the `first` on take at least."""
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
    record.say_written(OUT.value)
    sys.stdout.flush()
    os._exit(0)  # what is still being compiled cannot be stopped


if __name__ == "__main__":
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")
    cli.run(main)
