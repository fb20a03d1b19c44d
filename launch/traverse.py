"""Varies one latent group while the others are fixed.

Writes OUT/traversal_GG.png and OUT/traversal_GG.npz.

python launch/traverse.py --workdir=DIR --out=OUT --group=G [--channel=C] [--of=samples]
"""

from absl import flags

from nvae_jax import api, cli, inputs, noise, options, traverse
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
GROUP = flags.DEFINE_integer("group", None, "number of the group; the coarsest is 0", required=True)
CHANNEL = flags.DEFINE_integer("channel", None, "vary this channel; default: redraw the group")
SPAN = flags.DEFINE_float("span", 3.0, "range of the channel: ± this many scales of the prior")
OTHERS = flags.DEFINE_enum("others", "noise", traverse.OTHERS, "what is fixed in the other groups")
OF = flags.DEFINE_enum("of", "images", ["images", "samples"], "what the variations start from")
IMAGES = options.define_images()
SPLIT = flags.DEFINE_string("split", "test", "split of the data set")
NUM = flags.DEFINE_integer("num", 6, "number of images or samples to vary", 1)
STEPS = flags.DEFINE_integer("steps", 9, "variations of each", 1)
TEMPERATURE = flags.DEFINE_list("temperature", ["1"], "of samples: one number, or one per scale")
RECALIBRATE = flags.DEFINE_bool("recalibrate_bn", True, "recalibrate batch norm for samples")
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of all draws")
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
