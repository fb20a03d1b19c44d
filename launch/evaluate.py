"""Evaluates a run's checkpoint on every example of a split; writes DIR/eval/*.json.

python launch/evaluate.py --workdir=DIR [--num_iw_samples=K] [--split=test] [--max_examples=N]
  [--checkpoint=latest]
"""

from absl import flags

from nvae_jax import checkpoint, cli, evaluate

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "latest", "latest, best (by the held-out NELBO in training), or a step"
)
SPLIT = flags.DEFINE_string("split", "test", "split; a set without test gives its validation split")
SAMPLES = flags.DEFINE_integer(
    "num_iw_samples", 1, "posterior draws per image, of the importance-weighted bound", 1
)
EXAMPLES = flags.DEFINE_integer("max_examples", None, "only the first so many examples", 1)
BATCH = flags.DEFINE_integer("batch_size", None, "images at a time; default: config.eval's", 1)
SEED = flags.DEFINE_integer("seed", 0, "of posterior draws and binarisation")


def main(_):
    """Flags in, one call out."""
    evaluate.evaluate_run(
        WORKDIR.value,
        *checkpoint.load_run(WORKDIR.value, checkpoint.parse_which(CHECKPOINT.value), join=True),
        split=SPLIT.value,
        num_iw_samples=SAMPLES.value,
        max_examples=EXAMPLES.value,
        batch_size=BATCH.value,
        seed=SEED.value,
    )


if __name__ == "__main__":
    cli.run(main)
