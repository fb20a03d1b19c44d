"""Caches compiled programs, so that equal models share them within a process."""

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def shared(make: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates a function that makes compiled programs so that it returns the same programs for
    equal arguments, and nothing is traced or compiled twice.

    The eight most recently used results are kept. Arguments must be hashable, as Flax modules are
    (although type checkers do not know that).
    """
    return cast(Callable[Arguments, Result], lru_cache(maxsize=8)(make))
