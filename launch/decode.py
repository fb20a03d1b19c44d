"""Latents to images: OUT/decoded.npz (uint8, key `images`) and OUT/decoded.png.

python launch/decode.py --workdir=DIR --latents=FILE.npz --out=OUT [--groups=K --temperature=T]
"""

from absl import flags

from nvae_jax import api, cli, encode, noise
from nvae_jax.interrupt import ended_by_sigterm

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
LATENTS = flags.DEFINE_string("latents", None, "what launch/encode.py wrote", required=True)
KIND = flags.DEFINE_enum("kind", "sample", encode.KINDS, "which of the file's latents")
GROUPS = flags.DEFINE_integer("groups", None, "only so many of the coarsest; default: all", 1)
TEMPERATURE = flags.DEFINE_list("temperature", ["1"], "of the prior, for the other groups")
BATCH = flags.DEFINE_integer("batch_size", None, "images at a time; default: config.eval's", 1)
SEED = flags.DEFINE_integer("seed", 0, "of the other groups")
OUT = flags.DEFINE_string("out", None, "folder to write to", required=True)


@ended_by_sigterm()
def main(_):
    """Flags in, one call out."""
    latents = encode.load_latents(LATENTS.value, KIND.value, GROUPS.value)
    encode.decode_run(
        api.load(WORKDIR.value, BATCH.value),
        latents,
        OUT.value,
        temperature=noise.parse_temperatures(TEMPERATURE.value),
        seed=SEED.value,
    )


if __name__ == "__main__":
    cli.run(main)
