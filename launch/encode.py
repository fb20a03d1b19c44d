"""Encodes images to latents.

Writes mean_NN and sample_NN for each latent group, coarsest first, to OUT.npz.

python launch/encode.py --workdir=DIR --out=OUT.npz [--images=FILE | --split=test --num=N]
"""

from absl import flags

from nvae_jax import api, cli, encode, inputs, options
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
IMAGES = options.define_images()
SPLIT = flags.DEFINE_string("split", "test", "split of the data set")
NUM = flags.DEFINE_integer("num", None, "number of images; default: all", 1)
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of posterior draws and binarisation")
OUT, OVERWRITE = options.define_out(".npz file to write")


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = api.load(**RUN(), batch_size=BATCH.value)
    images = inputs.select(
        run.experiment, images=IMAGES.value, split=SPLIT.value, num=NUM.value, seed=SEED.value
    )
    encode.encode_run(
        run,
        images,
        OUT.value,
        source=IMAGES.value or SPLIT.value,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
