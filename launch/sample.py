"""Draws images from a run's prior: OUT/samples.npz (uint8, key `images`) and OUT/samples.png.

python launch/sample.py --workdir=DIR --num=N --temperature=T [--recalibrate_bn] --out=OUT
"""

from absl import flags

from nvae_jax import cli, sample

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
NUM = flags.DEFINE_integer("num", 64, "how many images", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "of the prior", 0.0)
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "batch-norm statistics from prior samples")
PASSES = flags.DEFINE_integer("passes", None, "of recalibration; default: config.eval's", 1)
DECODER = flags.DEFINE_enum(
    "decoder", None, ["mean", "sample"], "pixels; default: mean of binary images, else a sample"
)
BATCH = flags.DEFINE_integer("batch_size", None, "images at a time; default: config.eval's", 1)
SEED = flags.DEFINE_integer("seed", 0, "of the images")
OUT = flags.DEFINE_string("out", None, "folder to write to", required=True)


def main(_):
    """Flags in, one call out."""
    sample.sample_run(
        *cli.load_run(WORKDIR.value),
        out=OUT.value,
        num=NUM.value,
        temperature=TEMPERATURE.value,
        recalibrate_bn=RECALIBRATE.value,
        passes=PASSES.value,
        decoder=DECODER.value,
        batch_size=BATCH.value,
        seed=SEED.value,
    )


if __name__ == "__main__":
    cli.run(main)
