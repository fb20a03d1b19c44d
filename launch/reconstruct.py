"""Reconstructs images from their k coarsest groups, with the others from the prior.

Writes OUT/reconstructions.png and OUT/reconstructions.npz.

python launch/reconstruct.py --workdir=DIR --out=OUT [--groups=0,3,6] [--temperature=T]
"""

from absl import flags

from nvae_jax import api, cli, inputs, noise, options, reconstruct
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
IMAGES = options.define_images()
SPLIT = flags.DEFINE_string("split", "test", "split of the data set")
NUM = flags.DEFINE_integer("num", 8, "number of images", 1)
GROUPS = flags.DEFINE_list("groups", None, "numbers k of groups; default: whole scales")
TEMPERATURE = flags.DEFINE_list("temperature", ["1"], "of the prior: one number, or one per scale")
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of all draws")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = api.load(**RUN(), batch_size=BATCH.value)
    images = inputs.select(
        run.experiment, images=IMAGES.value, split=SPLIT.value, num=NUM.value, seed=SEED.value
    )
    reconstruct.reconstruct_run(
        run,
        images,
        OUT.value,
        source=IMAGES.value or SPLIT.value,
        groups=reconstruct.parse_groups(GROUPS.value),
        temperature=noise.parse_temperatures(TEMPERATURE.value),
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
