"""Analyses the latents: KL by group and scale, active units, rate and distortion.

Writes OUT/latents.json, OUT/latents.png and OUT/latents.npz.

python launch/analyze.py --workdir=DIR --out=OUT [--split=test] [--max_examples=N]
"""

from absl import flags

from nvae_jax import analyze, api, cli, options
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
SPLIT = flags.DEFINE_string("split", "test", "split; without a test split, test is validation")
EXAMPLES = flags.DEFINE_integer("max_examples", None, "use only this many images", 2)
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of posterior draws and binarisation")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    analyze.analyze_run(
        api.load(**RUN(), batch_size=BATCH.value),
        OUT.value,
        split=SPLIT.value,
        max_examples=EXAMPLES.value,
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
