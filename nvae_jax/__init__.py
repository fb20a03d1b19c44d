"""NVAE, a deep hierarchical VAE (Vahdat & Kautz, NeurIPS 2020), in JAX and Flax."""

import re
import sys
from pathlib import Path

__version__ = "0.1.0"


def _refuse_to_run():
    """Ends `python -m nvae_jax.train` and `python nvae_jax/train.py`: they would define functions,
    do nothing, and end with status 0."""
    script, names = Path(sys.argv[0] if sys.argv else ""), []
    if str(script) == "-m":  # Python is still looking for what -m names
        names = [word for word in sys.orig_argv if re.match(r"(-\w*m)?nvae_jax\.\w", word)]
    elif script.is_file() and script.resolve().is_relative_to(Path(__file__).resolve().parent):
        names = [script]
    if names:
        print(
            f"error: {names[0]} is no command: python -m nvae_jax lists those there are",
            file=sys.stderr,
        )
        sys.exit(2)


_refuse_to_run()
