"""Serves a page to explore a run, on 127.0.0.1: samples, single groups, your own images.

python launch/explore.py --workdir=DIR [--port=8000] [--num=16]
"""

from absl import flags

from nvae_jax import cli, options
from nvae_jax.explore import explorer
from nvae_jax.interrupt import raise_on_sigterm

RUN = options.define_run(join=False)
PORT = flags.DEFINE_integer("port", 8000, "port of the page; 0: any free port", 0, 65535)
NUM = flags.DEFINE_integer("num", 16, "pictures of each kind; they are one batch", 2, 64)


@raise_on_sigterm()
def main(_):
    """Flags in, one call out."""
    explorer.explore_run(PORT.value, **RUN(), batch_size=NUM.value)


if __name__ == "__main__":
    cli.run(main)
