"""Imports optional dependencies, the extras of pyproject.toml."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast


def load(name: str, extra: str, purpose: str) -> ModuleType:
    """Imports a module of an optional dependency.

    Args:
      name: name of the module.
      extra: the extra that installs it.
      purpose: what needs it, as the subject of the error message.

    Raises:
      ValueError: if it, or one of its own dependencies, is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{purpose} needs {error.name or name}: pip install 'nvae_jax[{extra}]'"
        ) from error


@contextlib.contextmanager
def hidden(module: str) -> Iterator[None]:
    """A context in which importing `module` fails, unless it has been imported before."""
    absent = module not in sys.modules
    if absent:
        sys.modules[module] = cast(Any, None)
    try:
        yield
    finally:
        if absent:
            del sys.modules[module]
