"""Writes a sampler and an encoder that run without this package.

OUT/sampler.jax and OUT/encoder.jax are programs that contain the weights.

python launch/export.py --workdir=DIR --out=OUT --temperature=0.7
"""

from absl import flags

from nvae_jax import api, cli, export, options
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
BATCH = flags.DEFINE_integer("batch_size", 16, "images per call", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "temperature of the recalibration")
RECALIBRATE = flags.DEFINE_bool(
    "recalibrate_bn", True, "recalibrate the sampler's batch-norm statistics"
)
PLATFORMS = flags.DEFINE_list("platforms", list(export.PLATFORMS), "platforms to export for")
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
