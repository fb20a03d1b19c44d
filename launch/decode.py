"""Decodes latents to images.

Writes OUT/decoded.npz (uint8, key `images`) and OUT/decoded.png.

python launch/decode.py --workdir=DIR --latents=FILE.npz --out=OUT [--groups=K --temperature=T]
"""

from absl import flags

from nvae_jax import api, cli, encode, noise, options, processes
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run()
LATENTS = options.define_path("latents", None, "file from launch/encode.py", required=True)
KIND = flags.DEFINE_enum("kind", "sample", encode.KINDS, "which of the file's latents to decode")
GROUPS = flags.DEFINE_integer("groups", None, "use only this many coarse groups; default: all", 1)
TEMPERATURE = flags.DEFINE_list("temperature", ["1"], "of the prior, for the other groups")
BATCH = options.define_batch_size()
SEED = options.define_seed("seed of the other groups")
OUT, OVERWRITE = options.define_out()


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    run = api.load(**RUN(), batch_size=BATCH.value)
    with processes.raise_together():
        latents = encode.load_latents(LATENTS.value, KIND.value, GROUPS.value)
    encode.decode_run(
        run,
        latents,
        OUT.value,
        source=LATENTS.value,
        temperature=noise.parse_temperatures(TEMPERATURE.value),
        seed=SEED.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    cli.run(main)
