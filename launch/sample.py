"""Draws images from the prior of a run.

Writes OUT/samples.npz (uint8, key `images`) and OUT/samples.png.

python launch/sample.py --workdir=DIR --num=N --temperature=T [--recalibrate_bn] --out=OUT
  [--checkpoint=latest]
"""

from absl import flags

from nvae_jax import cli, loading, options, sample
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
NUM = flags.DEFINE_integer("num", 64, "number of images", 1)
SAMPLING = options.define_sampling()
DECODER = flags.DEFINE_enum(
    "decoder",
    None,
    ["mean", "sample"],
    "mean or sample of the pixels; default: mean for binary images, otherwise sample",
)
DECODER_TEMPERATURE = flags.DEFINE_float(
    "decoder_temperature", 1.0, "temperature of sampled pixels", 0.0
)
BATCH = options.define_batch_size()
PNG_FILES = flags.DEFINE_bool("png_files", False, "also write OUT/images/NNNNNN.png")
SEED = options.define_seed("seed of the images")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = RUN()
    sample.sample_run(
        run["workdir"],
        *loading.load_run(**run),
        out=OUT.value,
        num=NUM.value,
        **SAMPLING(),
        decoder=DECODER.value,
        decoder_temperature=DECODER_TEMPERATURE.value,
        batch_size=BATCH.value,
        png_files=PNG_FILES.value,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
