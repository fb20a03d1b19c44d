"""Finds the training images nearest to samples, to detect memorisation.

The same search for test images is the baseline.

python launch/nearest.py --workdir=DIR --out=OUT --num=64 --temperature=0.7
"""

from absl import flags

from nvae_jax import api, cli, nearest, noise, options
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
SAMPLES = options.define_path("samples", None, "file from launch/sample.py; default: new samples")
NUM = flags.DEFINE_integer("num", 64, "number of samples, and of test images", 1)
NEIGHBOURS = flags.DEFINE_integer("neighbours", 5, "neighbours per image", 1)
CROP = flags.DEFINE_float("crop", 0.5, "size of the centre crop, as a fraction", 0.0, 1.0)
ROWS = flags.DEFINE_integer("rows", 8, "samples in the pictures", 1)
SPLIT = flags.DEFINE_string("split", "test", "split of the baseline")
TEMPERATURE = flags.DEFINE_list(
    "temperature", ["1"], "of new samples: one number, or one per scale"
)
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "recalibrate batch norm for new samples")
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of new samples")
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
