"""NVAE, a deep hierarchical VAE (Vahdat & Kautz, NeurIPS 2020), in JAX and Flax."""

import re
import sys
from pathlib import Path

from etils import epy

__version__ = "0.1.0"
__all__ = [
    "Experiment",
    "Logger",
    "NVAE",
    "Output",
    "Run",
    "State",
    "build_experiment",
    "build_likelihood",
    "build_model",
    "convert_state",
    "get_config",
    "load",
    "make_likelihood",
    "train_run",
]


def _refuse_to_run():
    """Exits with an error where a module is run as a script (`python -m nvae_jax.train` or
    `python nvae_jax/train.py`): it would only define functions and exit with status 0."""
    script, names = Path(sys.argv[0] if sys.argv else ""), []
    if str(script) == "-m":  # Python is still looking for what -m names
        names = [word for word in sys.orig_argv if re.match(r"(-\w*m)?nvae_jax\.\w", word)]
    elif script.is_file() and script.resolve().is_relative_to(Path(__file__).resolve().parent):
        names = [script]
    if names:
        print(
            f"error: {names[0]} is not a command: `python -m nvae_jax` lists the commands",
            file=sys.stderr,
        )
        sys.exit(2)


_refuse_to_run()

# These are imported on first use, so that `import nvae_jax` alone does not import JAX.
with epy.lazy_api_imports(globals()):
    from nvae_jax.api import Run, load
    from nvae_jax.build import build as build_experiment
    from nvae_jax.build import build_likelihood, build_model
    from nvae_jax.config_file import get_config
    from nvae_jax.experiment import Experiment
    from nvae_jax.interop.torch_checkpoint import convert_state
    from nvae_jax.likelihoods import make as make_likelihood
    from nvae_jax.loggers import Logger
    from nvae_jax.models.nvae import NVAE, Output
    from nvae_jax.state import State
    from nvae_jax.train import train as train_run
