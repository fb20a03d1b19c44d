"""Finds the training images nearest to samples: is it memorising?

The baseline is what is nearest to test images.

python launch/nearest.py --workdir=DIR --out=OUT --num=64 --temperature=0.7
"""

from absl import flags

from nvae_jax import api, cli, nearest, noise, options
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
SAMPLES = options.define_path("samples", None, "what launch/sample.py wrote; default: new samples")
NUM = flags.DEFINE_integer("num", 64, "how many samples, and test images", 1)
NEIGHBOURS = flags.DEFINE_integer("neighbours", 5, "of each", 1)
CROP = flags.DEFINE_float("crop", 0.5, "centre crop's part of height and width", 0.0, 1.0)
ROWS = flags.DEFINE_integer("rows", 8, "samples that the pictures show", 1)
SPLIT = flags.DEFINE_string("split", "test", "of the baseline")
TEMPERATURE = flags.DEFINE_list("temperature", ["1"], "of new samples: one, or one a scale")
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "batch-norm statistics of new samples")
BATCH = options.define_batch_size()
SEED = options.define_seed("of new samples")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = api.load(**RUN(), batch_size=BATCH.value)
    samples, metadata = nearest.load_or_draw_samples(
        run,
        NUM.value,
        file=SAMPLES.value,
        temperature=noise.parse_temperatures(TEMPERATURE.value),
        recalibrate_bn=RECALIBRATE.value,
        seed=SEED.value,
    )
    nearest.nearest_run(
        run,
        samples,
        OUT.value,
        num=NEIGHBOURS.value,
        crop_fraction=CROP.value,
        rows=ROWS.value,
        split=SPLIT.value,
        metadata=metadata,
        source=SAMPLES.value or "samples",
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
