"""Packages that only some uses need: the extras of pyproject.toml."""

import importlib
from types import ModuleType


def load(name: str, extra: str, purpose: str) -> ModuleType:
    """Imports a package of an extra.

    Args:
      name: of the module.
      extra: that installs it.
      purpose: what needs it, as the subject of a sentence.

    Raises:
      ValueError: it, or what it needs itself, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{purpose} needs {error.name or name}: pip install 'nvae_jax[{extra}]'"
        ) from error
