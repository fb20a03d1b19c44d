"""Draws images from the prior of a run.

Writes OUT/samples.npz (uint8, key `images`) and OUT/samples.png.

python launch/sample.py --workdir=DIR --num=N --temperature=T [--recalibrate_bn] --out=OUT
  [--checkpoint=latest]
"""

from absl import flags

from nvae_jax import checkpoint, cli, noise, options, sample, schema
from nvae_jax.interrupt import raise_on_sigterm
from nvae_jax.recalibrate import METHODS

RUN = options.define_run()
NUM = flags.DEFINE_integer("num", 64, "how many images", 1)
TEMPERATURE = flags.DEFINE_list(
    "temperature", ["1"], "of the prior: one, or one a scale, coarsest first: --temperature=1,0.7"
)
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "batch-norm statistics from prior samples")
METHOD = flags.DEFINE_enum(
    "recalibration", METHODS[0], METHODS, "exact statistics, or the published moving average"
)
PASSES = flags.DEFINE_integer(
    "passes", None, "of recalibration; default: config.eval's", 1, schema.MANY
)
DECODER = flags.DEFINE_enum(
    "decoder", None, ["mean", "sample"], "pixels; default: mean of binary images, else a sample"
)
DECODER_TEMPERATURE = flags.DEFINE_float("decoder_temperature", 1.0, "of sampled pixels", 0.0)
BATCH = options.define_batch_size()
PNG_FILES = flags.DEFINE_bool("png_files", False, "also write OUT/images/NNNNNN.png")
SEED = options.define_seed("of the images")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = RUN()
    sample.sample_run(
        run["workdir"],
        *checkpoint.load_run(**run),
        out=OUT.value,
        num=NUM.value,
        temperature=noise.parse_temperatures(TEMPERATURE.value),
        recalibrate_bn=RECALIBRATE.value,
        recalibration=METHOD.value,
        passes=PASSES.value,
        decoder=DECODER.value,
        decoder_temperature=DECODER_TEMPERATURE.value,
        batch_size=BATCH.value,
        png_files=PNG_FILES.value,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
