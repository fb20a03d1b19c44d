"""Variations of one latent group, the others fixed.

Writes OUT/traversal_GG.png and OUT/traversal_GG.npz.

python launch/traverse.py --workdir=DIR --out=OUT --group=G [--channel=C] [--of=samples]
"""

from absl import flags

from nvae_jax import api, cli, inputs, noise, options, traverse
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
GROUP = flags.DEFINE_integer("group", None, "number of the group, coarsest first: 0", required=True)
CHANNEL = flags.DEFINE_integer("channel", None, "move this channel; default: draw the group anew")
SPAN = flags.DEFINE_float("span", 3.0, "prior scales that the channel moves, both ways")
OTHERS = flags.DEFINE_enum("others", "noise", traverse.OTHERS, "what of the others is fixed")
OF = flags.DEFINE_enum("of", "images", ["images", "samples"], "what the variations start from")
IMAGES = options.define_images()
SPLIT = flags.DEFINE_string("split", "test", "of the data set")
NUM = flags.DEFINE_integer("num", 6, "how many starts", 1)
STEPS = flags.DEFINE_integer("steps", 9, "variations of each", 1)
TEMPERATURE = flags.DEFINE_list("temperature", ["1"], "of samples: one, or one a scale")
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "batch-norm statistics, for samples")
BATCH = options.define_batch_size()
SEED = options.define_seed("of all draws")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    temperature = noise.parse_temperatures(TEMPERATURE.value)
    run, images = inputs.starting_images(
        api.load(**RUN(), batch_size=BATCH.value),
        samples=OF.value == "samples",
        temperature=temperature if RECALIBRATE.value else None,
        images=IMAGES.value,
        split=SPLIT.value,
        num=NUM.value,
        seed=SEED.value,
    )
    traverse.traverse_run(
        run,
        OUT.value,
        images=images,
        source=IMAGES.value or SPLIT.value,
        num=NUM.value,
        group=GROUP.value,
        num_steps=STEPS.value,
        channel=CHANNEL.value,
        span=SPAN.value,
        others=OTHERS.value,
        temperature=temperature,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
