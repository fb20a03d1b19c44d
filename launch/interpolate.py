"""Draws the ways between pairs of images or of samples.

Writes OUT/interpolation.png, .npz and .gif or .webp.

python launch/interpolate.py --workdir=DIR --out=OUT --between=samples --temperature=0.7
"""

from absl import flags

from nvae_jax import api, cli, inputs, interpolate, noise, options
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
BETWEEN = flags.DEFINE_enum("between", "images", ["images", "samples"], "what the ends are")
IMAGES = options.define_images()
SPLIT = flags.DEFINE_string("split", "test", "of the data set")
PAIRS = flags.DEFINE_integer("pairs", 4, "how many ways", 1)
STEPS = flags.DEFINE_integer("steps", 9, "images of a way", 2)
TEMPERATURE = flags.DEFINE_list("temperature", ["1"], "of samples: one, or one a scale")
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "batch-norm statistics, for samples")
ANIMATION = flags.DEFINE_enum("animation", "gif", ["gif", "webp", "none"], "its format")
BATCH = options.define_batch_size()
SEED = options.define_seed("of all draws")
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
