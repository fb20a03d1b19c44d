"""Writes an HTML page about a run, in a single file that can be mailed.

It has curves, samples at several temperatures with and without recalibration, reconstructions by
scale, an analysis of the latents, nearest training images, results of evaluation, config, versions.

python launch/report.py --workdir=DIR [--out=FILE.html] [--temperatures=1,0.8,0.6,0.4]
"""

from absl import flags

from nvae_jax import api, cli, noise, options, schema
from nvae_jax.interrupt import raise_on_sigterm
from nvae_jax.report.measure import Settings
from nvae_jax.report.write import report_run

RUN = options.define_run(join=False)
OUT = options.define_path("out", None, "file to write; default: report.html in the run directory")
SPLIT = flags.DEFINE_string("split", "test", "split; without a test split, test is validation")
EXAMPLES = flags.DEFINE_integer("max_examples", 1000, "use only this many images", 2, 100_000)
TEMPERATURES = flags.DEFINE_list(
    "temperatures", ["1", "0.8", "0.6", "0.4"], "temperatures of samples"
)
NUM = flags.DEFINE_integer("num", 25, "samples at each temperature", 1, 400)
NEAREST = flags.DEFINE_bool("nearest", True, "compare samples with all training images")
PASSES = flags.DEFINE_integer(
    "passes", None, "passes of recalibration; default: config.eval's", 1, schema.MANY
)
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of all draws")
OVERWRITE = options.define_overwrite()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = api.load(**RUN(), batch_size=BATCH.value)
    settings = Settings(
        split=SPLIT.value,
        max_examples=EXAMPLES.value,
        temperatures=tuple(noise.parse_temperatures(TEMPERATURES.value)),
        num=NUM.value,
        nearest=NEAREST.value,
        passes=PASSES.value,
        seed=SEED.value,
    )
    report_run(run, OUT.value or run.workdir / "report.html", settings, overwrite=OVERWRITE.value)


if __name__ == "__main__":
    cli.run(main)
