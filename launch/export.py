"""Writes a sampler and an encoder that run without this package.

OUT/sampler.jax and OUT/encoder.jax are programs with the weights in them.

python launch/export.py --workdir=DIR --out=OUT --temperature=0.7
"""

from absl import flags

from nvae_jax import api, cli, export, options
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
BATCH = flags.DEFINE_integer("batch_size", 16, "images of a call", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "of the recalibrated statistics")
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "batch-norm statistics of the sampler")
PLATFORMS = flags.DEFINE_list("platforms", list(export.PLATFORMS), "to run on")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = api.load(**RUN())
    export.export_run(
        run.recalibrated(TEMPERATURE.value) if RECALIBRATE.value else run,
        OUT.value,
        batch_size=BATCH.value,
        temperature=TEMPERATURE.value,
        platforms=PLATFORMS.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
