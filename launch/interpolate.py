"""Interpolates between pairs of images or samples.

Writes OUT/interpolation.png, .npz and .gif or .webp.

python launch/interpolate.py --workdir=DIR --out=OUT --between=samples --temperature=0.7
"""

from absl import flags

from nvae_jax import api, cli, inputs, interpolate, noise, options
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
BETWEEN = flags.DEFINE_enum("between", "images", ["images", "samples"], "kind of the end points")
IMAGES = options.define_images()
SPLIT = flags.DEFINE_string("split", "test", "split of the data set")
PAIRS = flags.DEFINE_integer("pairs", 4, "number of pairs", 1)
STEPS = flags.DEFINE_integer("steps", 9, "images per pair, end points included", 2)
TEMPERATURE = flags.DEFINE_list("temperature", ["1"], "of samples: one number, or one per scale")
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "recalibrate batch norm for samples")
ANIMATION = flags.DEFINE_enum(
    "animation", "gif", ["gif", "webp", "none"], "format of the animation"
)
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of all draws")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    temperature = noise.parse_temperatures(TEMPERATURE.value)
    run = api.load(**RUN(), batch_size=BATCH.value)
    run, images = inputs.starting_images(
        run,
        samples=BETWEEN.value == "samples",
        temperature=temperature if RECALIBRATE.value else None,
        images=IMAGES.value,
        split=SPLIT.value,
        num=2 * PAIRS.value,
        seed=SEED.value,
    )
    interpolate.interpolate_run(
        run,
        OUT.value,
        images=images,
        source=IMAGES.value or SPLIT.value,
        num=PAIRS.value,
        num_steps=STEPS.value,
        temperature=temperature,
        animation=ANIMATION.value,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
