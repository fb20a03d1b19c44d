"""Images to latents: OUT.npz gets mean_NN and sample_NN for each latent group, coarsest first.

python launch/encode.py --workdir=DIR --out=OUT.npz [--images=FILE | --split=test --num=N]
"""

from absl import flags

from nvae_jax import api, cli, encode, inputs
from nvae_jax.interrupt import ended_by_sigterm

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
IMAGES = flags.DEFINE_string("images", None, ".npz, .npy, picture or folder; default: the split's")
SPLIT = flags.DEFINE_string("split", "test", "of the data set")
NUM = flags.DEFINE_integer("num", None, "how many images; default: all", 1)
BATCH = flags.DEFINE_integer("batch_size", None, "images at a time; default: config.eval's", 1)
SEED = flags.DEFINE_integer("seed", 0, "of posterior draws and binarisation")
OUT = flags.DEFINE_string("out", None, ".npz file to write", required=True)


@ended_by_sigterm()
def main(_):
    """Flags in, one call out."""
    run = api.load(WORKDIR.value, BATCH.value)
    images = inputs.select(
        run.experiment, images=IMAGES.value, split=SPLIT.value, num=NUM.value, seed=SEED.value
    )
    encode.encode_run(run, images, OUT.value, seed=SEED.value)


if __name__ == "__main__":
    cli.run(main)
