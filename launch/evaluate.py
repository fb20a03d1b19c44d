"""Evaluates a checkpoint on every example of a split.

Prints NELBO, importance-weighted -log p and bits per dimension, and writes DIR/eval/*.json.

python launch/evaluate.py --workdir=DIR [--num_iw_samples=K] [--split=test] [--max_examples=N]
  [--checkpoint=latest]
"""

from absl import flags

from nvae_jax import cli, evaluate, loading, options, schema

RUN = options.define_run()
SPLIT = flags.DEFINE_string("split", "test", "split; without a test split, test is validation")
SAMPLES = flags.DEFINE_integer(
    "num_iw_samples",
    1,
    "posterior draws per image for the importance-weighted bound",
    1,
    schema.MANY,
)
EXAMPLES = flags.DEFINE_integer("max_examples", None, "use only this many examples", 1)
BATCH = options.define_batch_size()
OVERWRITE = options.define_overwrite()
SEED = options.define_seed("seed of posterior draws and binarisation")


def main(_):
    """Flags in, one call out."""
    run = RUN()
    evaluate.evaluate_run(
        run["workdir"],
        *loading.load_run(**run),
        split=SPLIT.value,
        num_iw_samples=SAMPLES.value,
        max_examples=EXAMPLES.value,
        batch_size=BATCH.value,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
