"""Chooses the implementation of operations by its name in the config and by the devices.

To add one, write a subclass of `Ops` in a folder of its own and add a row to `IMPLEMENTATIONS`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
from absl import logging

from nvae_jax.ops.interface import Ops
from nvae_jax.ops.portable import Portable


@dataclass(frozen=True)
class Implementation:
    """A class of operations, and where it runs.

    Attributes:
      path: (module, name of the class); it is imported only when it is used.
      platform: platform of the devices that it runs on; None means any.
      alone: whether it runs only on a single device.
      slowdown: what running without it costs, for a warning if it is not available.
    """

    path: tuple[str, str]
    platform: str | None = None
    alone: bool = False
    slowdown: str = ""

    def supports(self, devices: Sequence[Any]) -> bool:
        """Whether it runs on these devices; an empty list stands for any devices."""
        platforms = {device.platform for device in devices}
        fits = self.platform is None or platforms == {self.platform}
        return fits and (len(devices) == 1 or not self.alone)

    def where(self) -> str:
        """Describes where it runs, for messages."""
        return f"{'one' if self.alone else 'any'} {str(self.platform).upper()} device"

    def make(self) -> Ops:
        """Imports the class and makes an instance."""
        module, name = self.path
        return getattr(importlib.import_module(f"nvae_jax.ops.{module}"), name)()

    def problem(self) -> str | None:
        """Explains in a phrase why it cannot run with what is installed; None if it can."""
        try:
            return self.make().problem()
        except ImportError as error:  # jax deprecates the Triton backend of Pallas and will drop it
            return f"jax {jax.__version__} lacks a part that it needs: {error}"


# {name in the config: implementation}, from the slowest to the fastest
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
    "pallas": Implementation(
        ("gpu", "Gpu"),
        "gpu",
        alone=True,
        slowdown="without the Pallas kernels a training step on a GPU moves more memory",
    ),
}
AUTO = "auto"
NAMES = (AUTO, *IMPLEMENTATIONS)


def choose(name: str, devices: Sequence[Any]) -> Ops:
    """Returns the `Ops` named in a config, for these devices.

    Args:
      name: one of `NAMES`; "auto" chooses the fastest one that runs on the devices.
      devices: the devices; () stands for any devices.

    Raises:
      ValueError: if it does not run on the devices; the message says why.
    """
    if name != AUTO:
        if problem := _problem(name, devices):
            raise ValueError(f"model.implementation is {name!r}, but {problem}")
        return IMPLEMENTATIONS[name].make() if devices else Portable()
    for one in reversed(IMPLEMENTATIONS.values()):
        if one.supports(devices):
            if not (problem := one.problem()):
                return one.make()
            _report_slowdown(one.slowdown, problem)
    raise AssertionError("Portable runs on all devices")


def runs(name: str, devices: Sequence[Any]) -> bool:
    """Whether the implementation named in a config runs on these devices."""
    return name not in IMPLEMENTATIONS or not _problem(name, devices)


def _problem(name, devices):
    """Explains why one of `IMPLEMENTATIONS` does not run on the devices; None if it does."""
    one = IMPLEMENTATIONS[name]
    if devices and not one.supports(devices):
        return f"it runs on {one.where()}, not on {len(devices)} ({devices[0].platform})"
    return one.problem()


@cache
def _report_slowdown(what, problem):
    """Warns once."""
    logging.warning("%s: %s", what, problem)
