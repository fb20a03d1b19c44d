"""Writes a run's model, with a card of its numbers, to the Hugging Face Hub or a folder.

The config (without this machine's paths), the variables, the rows of training and the
results of evaluation go along. NAME is hf://OWNER/NAME[@BRANCH], for which the Hub's own login
counts (`hf auth login`), or a folder.

python launch/push.py NAME --workdir=DIR [--checkpoint=best] [--license=L] [--note=TEXT]
"""

from absl import flags

from nvae_jax import cli, options
from nvae_jax.hub import transfer
from nvae_jax.interrupt import raise_on_sigterm

ARGUMENTS = ("NAME",)
RUN = options.define_run(join=False)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "of the parameters in the file"
)
LICENSE = flags.DEFINE_string("license", "", "of the weights, as the Hub calls it: apache-2.0")
NOTE = flags.DEFINE_string("note", "", "a paragraph for the card")
PRIVATE = flags.DEFINE_bool("private", False, "make the repository, if it is a new one, private")
OVERWRITE = options.define_overwrite()


@raise_on_sigterm()
def main(argv):
    """Flags in, one call out."""
    place = transfer.push(
        name=argv[1],
        **RUN(),
        dtype=DTYPE.value,
        license=LICENSE.value,
        note=NOTE.value,
        private=PRIVATE.value,
        overwrite=OVERWRITE.value,
    )
    print(f"written to {place}")


if __name__ == "__main__":
    cli.run(main)
