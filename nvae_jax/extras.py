"""Packages that only some uses need: the extras of pyproject.toml."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast


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


@contextlib.contextmanager
def hidden(module: str) -> Iterator[None]:
    """A context in which a package counts as not installed, unless it has been imported."""
    hides = module not in sys.modules
    if hides:
        sys.modules[module] = cast(Any, None)
    try:
        yield
    finally:
        if hides:
            del sys.modules[module]
