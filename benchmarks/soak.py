"""Tests long runs: memory and open files over many steps, and recovery after many kills.

  python benchmarks/soak.py [--what=steps,kills] [--steps=100000] [--kills=20] [--out=DIR]

`steps` trains a tiny model with checkpoints, drawings, evaluations and rows of metrics, and
monitors its process: private memory, open files, threads. `kills` trains the same model in two
processes and kills one of them with SIGKILL at random times in training, every fifth time in the
middle of a save, and every fourth time once more at its start. The other must end with one line
within distributed.timeout, or within distributed.start_timeout if the killed one had not joined
yet. The restarted run must give the same numbers as a run without kills. With --workdir, an
interrupted call can be resumed. The exit status is 1 if memory or open files grow, a process does
not end, or a number differs. Writes JSON and, for `steps`, a figure. Linux only.
"""

import pathlib
import signal
import sys
import tempfile

import record
from absl import flags
from soak_kills import soak_kills
from soak_steps import draw, soak_steps

from nvae_jax import cli

HERE = pathlib.Path(__file__).resolve().parent
WHAT = flags.DEFINE_list("what", ["steps", "kills"], "of steps, kills")
STEPS = flags.DEFINE_integer("steps", 100_000, "training steps", 1)
KILLS = flags.DEFINE_integer("kills", 20, "number of kills in training", 1)
SEED = flags.DEFINE_integer("seed", 0, "seed of the times of kills and the killed processes")
SECONDS = flags.DEFINE_float("seconds", 10.0, "seconds between two samples of the process", 0.01)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs; default: a temporary one")
OUT = flags.DEFINE_string("out", str(HERE / "results"), "folder of the results")


def main(_):
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends its children
    unknown = set(WHAT.value) - {"steps", "kills"}
    if unknown:
        raise ValueError(f"--what: it must be of steps and kills, not {min(unknown)!r}")
    out, failed = pathlib.Path(OUT.value), []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(WORKDIR.value or temporary)
        if "steps" in WHAT.value:
            samples, summary = soak_steps(folder / "steps", STEPS.value, SECONDS.value)
            record.write(out / "soak_steps.json", samples, steps=STEPS.value, **summary)
            draw(samples, out / "soak_steps.svg")
            failed += summary["failed"]
        if "kills" in WHAT.value:
            rows, summary = soak_kills(folder / "kills", KILLS.value, SEED.value)
            record.write(out / "soak_kills.json", rows, seed=SEED.value, **summary)
            failed += summary["failed"]
    for problem in failed:
        print(f"failed: {problem}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    cli.run(main)
