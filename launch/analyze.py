"""What the latents do: KL by group and scale, active units, rates: OUT/latents.json, .png, .npz.

python launch/analyze.py --workdir=DIR --out=OUT [--split=test] [--max_examples=N]
"""

from absl import flags

from nvae_jax import analyze, api, cli
from nvae_jax.interrupt import ended_by_sigterm

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
SPLIT = flags.DEFINE_string("split", "test", "split; a set without test gives its validation split")
EXAMPLES = flags.DEFINE_integer("max_examples", None, "only the first so many images", 2)
BATCH = flags.DEFINE_integer("batch_size", None, "images at a time; default: config.eval's", 1)
SEED = flags.DEFINE_integer("seed", 0, "of posterior draws and binarisation")
OUT = flags.DEFINE_string("out", None, "folder to write to", required=True)


@ended_by_sigterm()
def main(_):
    """Flags in, one call out."""
    analyze.analyze_run(
        api.load(WORKDIR.value, BATCH.value),
        OUT.value,
        split=SPLIT.value,
        max_examples=EXAMPLES.value,
        seed=SEED.value,
    )


if __name__ == "__main__":
    cli.run(main)
