"""Trains a model, or resumes the run that the folder holds.

python launch/train.py --config=configs/X.py --workdir=DIR [--config.KEY=VALUE ...]
"""

from absl import flags
from ml_collections import config_flags

from nvae_jax import cli, train

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configuration file; --config.KEY=VALUE changes a key (see configs/base.py)"
)
flags.declare_key_flag("config")
WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)


def main(_):
    """Flags in, one call out."""
    train.train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    cli.run(main)
