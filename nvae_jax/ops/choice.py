"""Which operations a run gets, by the name that its config gives them and by its devices.

To add some: a folder with a class of `Ops` and a row in `IMPLEMENTATIONS`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from absl import logging

from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import Portable


@dataclass(frozen=True)
class Implementation:
    """A class of operations, and where it runs.

    Attributes:
      path: of its module and its name there; imported only where it is chosen.
      platform: of JAX's devices; None: any.
      alone: whether on a single device only.
      slowdown: what a run without it loses, to be said where it could have been had.
    """

    path: tuple[str, str]
    platform: str | None = None
    alone: bool = False
    slowdown: str = ""

    def supports(self, devices: Sequence[Any]) -> bool:
        """Whether it runs on these devices; what runs anywhere suits an empty list too."""
        platforms = {device.platform for device in devices}
        fits = self.platform is None or platforms == {self.platform}
        return fits and (len(devices) == 1 or not self.alone)

    def where(self) -> str:
        """Where it runs, in words."""
        return f"{'one' if self.alone else 'any'} {str(self.platform).upper()} device"

    def make(self) -> Ops:
        """Imports and makes the operations."""
        module, name = self.path
        return getattr(importlib.import_module(f"nvae_jax.ops.{module}"), name)()


# From the slowest to the fastest.
IMPLEMENTATIONS = {
    "portable": Implementation(("portable", "Portable")),
    "cpu": Implementation(("cpu", "Cpu"), "cpu"),
    "native": Implementation(
        ("cpu", "Native"),
        "cpu",
        alone=True,
        slowdown="without the C++ kernels a training step takes a quarter longer, and sampling and "
        "the start of training twice as long",
    ),
    "pallas": Implementation(("gpu", "Gpu"), "gpu", alone=True),
}
AUTO = "auto"
NAMES = (AUTO, *IMPLEMENTATIONS)


def choose(name: str, devices: Sequence[Any]) -> Ops:
    """The `Ops` that a config calls `name`, for these devices.

    Args:
      name: one of `NAMES`; "auto" takes the fastest that the devices can have.
      devices: a sequence; () gives what runs anywhere.

    Raises:
      ValueError: the devices cannot have it; the message says why.
    """
    if name != AUTO:
        if problem := _problem(name, devices):
            raise ValueError(f"model.implementation is {name!r}, but {problem}")
        return IMPLEMENTATIONS[name].make() if devices else Portable()
    for one in reversed(IMPLEMENTATIONS.values()):
        if one.supports(devices):
            ops = one.make()
            if not ops.problem():
                return ops
            _report_slowdown(one.slowdown, ops.problem())
    raise AssertionError("Portable suits all devices and has no problem")


def runs(name: str, devices: Sequence[Any]) -> bool:
    """Whether `choose` can give the devices what a config calls `name`."""
    return name not in IMPLEMENTATIONS or not _problem(name, devices)


def _problem(name, devices):
    """What keeps the devices from having one of `IMPLEMENTATIONS`, in words, or None."""
    one = IMPLEMENTATIONS[name]
    if devices and not one.supports(devices):
        return f"it runs on {one.where()}, not on {len(devices)} ({devices[0].platform})"
    return one.make().problem()


@cache
def _report_slowdown(what, problem):
    """Says so once; on the only device there is, so in one process only."""
    logging.warning("%s: %s", what, problem)
