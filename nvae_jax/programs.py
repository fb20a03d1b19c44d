"""Programs that equal models share within a process."""

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, TypeVar, cast

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def shared(make: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorates a function that makes compiled programs: called again with equal arguments, it
    gives the same ones, so that nothing is traced or compiled twice. The newest eight are kept.

    Arguments have to be hashable, as Flax modules are (type checkers think otherwise).
    """
    return cast(Callable[Arguments, Result], lru_cache(maxsize=8)(make))
