"""Draws images from a run's prior: OUT/samples.npz (uint8, key `images`) and OUT/samples.png.

python launch/sample.py --workdir=DIR --num=N --temperature=T [--recalibrate_bn] --out=OUT
  [--checkpoint=latest]
"""

from absl import flags

from nvae_jax import checkpoint, cli, noise, sample
from nvae_jax.interrupt import ended_by_sigterm
from nvae_jax.recalibrate import METHODS

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "latest, best (by the held-out NELBO in training), or a step"
)
NUM = flags.DEFINE_integer("num", 64, "how many images", 1)
TEMPERATURE = flags.DEFINE_list(
    "temperature", ["1"], "of the prior: one, or one a scale, coarsest first: --temperature=1,0.7"
)
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "batch-norm statistics from prior samples")
METHOD = flags.DEFINE_enum(
    "recalibration", METHODS[0], METHODS, "exact statistics, or the published moving average"
)
PASSES = flags.DEFINE_integer("passes", None, "of recalibration; default: config.eval's", 1)
DECODER = flags.DEFINE_enum(
    "decoder", None, ["mean", "sample"], "pixels; default: mean of binary images, else a sample"
)
DECODER_TEMPERATURE = flags.DEFINE_float("decoder_temperature", 1.0, "of sampled pixels", 0.0)
BATCH = flags.DEFINE_integer("batch_size", None, "images at a time; default: config.eval's", 1)
PNG_FILES = flags.DEFINE_bool("png_files", False, "also write OUT/images/NNNNNN.png")
SEED = flags.DEFINE_integer("seed", 0, "of the images")
OUT = flags.DEFINE_string("out", None, "folder to write to", required=True)


@ended_by_sigterm()
def main(_):
    """Flags in, one call out."""
    sample.sample_run(
        WORKDIR.value,
        *checkpoint.load_run(WORKDIR.value, checkpoint.parse_which(CHECKPOINT.value)),
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
    )


if __name__ == "__main__":
    cli.run(main)
