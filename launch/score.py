"""Scores how similar images are to the training data; --against compares two sets.

Writes every image's ELBO, importance-weighted log p, KL of each scale, L^{>k} and LLR^{>k} (Havtorn
et al. 2021) to OUT/scores.csv and OUT/scores.npz, and means to OUT/scores.json.

python launch/score.py --workdir=DIR --out=OUT [--images=FILE_OR_FOLDER] [--against=OTHER]
  [--num_iw_samples=K]
"""

from absl import flags

from nvae_jax import api, cli, options, schema, score, scores
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run(join=False)
IMAGES = options.define_images()
SPLIT = flags.DEFINE_string("split", "test", "split; without a test split, test is validation")
AGAINST = options.define_path(
    "against", None, "images to compare with: .npz, .npy, picture, folder, split, or data set"
)
SAMPLES = flags.DEFINE_integer(
    "num_iw_samples", 10, "draws per image, over which the scores are averaged", 1, schema.MANY
)
SCALES = flags.DEFINE_list(
    "scales", None, "values k of L^{>k}, with the k finest scales from the prior; default: all"
)
EXAMPLES = flags.DEFINE_integer("max_examples", None, "use only this many images of each set", 1)
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of the draws and binarisation")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    score.score_run(
        api.load(**RUN(), batch_size=BATCH.value),
        OUT.value,
        images=IMAGES.value or SPLIT.value,
        against=AGAINST.value,
        num_iw_samples=SAMPLES.value,
        scales=scores.parse_scales(SCALES.value),
        max_examples=EXAMPLES.value,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
