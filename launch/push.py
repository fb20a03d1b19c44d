"""Writes a run's model, with a model card, to the Hugging Face Hub or a folder.

It includes the config (without this machine's paths), the variables, the training metrics and the
results of evaluation. NAME is a folder, or hf://OWNER/NAME[@BRANCH] after a login to the Hub
(`hf auth login`).

python launch/push.py NAME --workdir=DIR [--checkpoint=best] [--license=L] [--note=TEXT]
"""

from absl import flags

from nvae_jax import cli, options
from nvae_jax.hub import transfer
from nvae_jax.interrupt import raise_on_sigterm

ARGUMENTS = ("NAME",)
RUN = options.define_run(join=False)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "type of the parameters in the file"
)
LICENSE = flags.DEFINE_string("license", "", "licence of the weights; the Hub's name: apache-2.0")
NOTE = flags.DEFINE_string("note", "", "a paragraph for the model card")
PRIVATE = flags.DEFINE_bool("private", False, "make a new repository private")
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
