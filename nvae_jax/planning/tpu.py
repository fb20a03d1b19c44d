"""TPU slices to compile for; their compiler is in the package libtpu, and runs on any CPU."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from jax.experimental import topologies

from nvae_jax.sharding import Devices


@dataclass(frozen=True)
class Generation:
    """A generation of TPUs.

    Attributes:
      hbm: GiB of memory per chip, including what the system reserves.
      accelerator: the name of a slice, without its size.
      cores_in_name: whether the size counts cores, two per chip, instead of chips.
      options: options of the topology.
    """

    hbm: int
    accelerator: str
    cores_in_name: bool = False
    options: tuple[tuple[str, str], ...] = ()


GENERATIONS = {
    # Both cores of a chip are one device, as on Cloud TPU.
    "v4": Generation(32, "v4", cores_in_name=True, options=(("chip_config_name", "megacore"),)),
    "v5e": Generation(16, "v5litepod"),
    "v5p": Generation(95, "v5p", cores_in_name=True),
    "v6e": Generation(32, "v6e"),
}
_NAME = re.compile(r"(\w+):([1-9]\d*(?:x[1-9]\d*){1,2})")


@dataclass(frozen=True)
class Slice:
    """A slice such as v5e:4x4."""

    generation: str
    shape: tuple[int, ...]

    platform = "tpu"  # the platform that programs are lowered for
    compiler_options = None

    @property
    def name(self) -> str:
        """The name of the topology in libtpu."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def num_devices(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def hbm(self) -> int:
        """Bytes of memory of each chip."""
        return GENERATIONS[self.generation].hbm * 2**30

    def devices(self) -> Devices:
        """Devices for a mesh. Programs can be compiled for them, but cannot run on them.

        Raises:
          ValueError: if libtpu is not installed, or there is no such slice.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise ValueError(
                "a TPU topology needs the TPU's compiler, which is not installed: "
                "pip install 'nvae_jax[tpu]'"
            )
        _pretend_to_be_on(self)
        options: dict[str, Any] = dict(GENERATIONS[self.generation].options)
        if math.prod(self.shape[:2]) < 4:  # otherwise each host has four chips
            options["chips_per_host_bounds"] = (*self.shape, 1)[:3]
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=self.name, **options
            )
        except RuntimeError as error:
            raise ValueError(f"the TPU's compiler refuses {self.name}: {error}") from error
        return description.devices


def parse(name: str) -> Slice | None:
    """The `Slice` that a name such as v5e:4x4 or v4:2x2x2 stands for, or None."""
    found = _NAME.fullmatch(name)
    if not found or found[1] not in GENERATIONS:
        return None
    return Slice(found[1], tuple(map(int, found[2].split("x"))))


def _pretend_to_be_on(slice_):
    """Sets the variables without which libtpu queries the cloud's metadata server for minutes."""
    generation = GENERATIONS[slice_.generation]
    size = slice_.num_devices * (2 if generation.cores_in_name else 1)
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE=f"{generation.accelerator}-{size}",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_WORKER_ID="0",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # compiling occupies no chip
    )
