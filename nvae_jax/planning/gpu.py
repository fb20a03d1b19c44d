"""GPUs to compile for: XLA's compiler for them is in JAX's CUDA plugin, and needs no GPU."""

import os
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from jax.experimental import topologies

from nvae_jax.planning.kernels import KernelCounts
from nvae_jax.sharding import Devices

ACHIEVED = 0.9  # fraction of the bandwidth that a large copy reaches on an H100 and on an H200
LAUNCH = 2.5e-6  # seconds for a kernel on an H100, in addition to its reads and writes


@dataclass(frozen=True)
class Card:
    """A GPU model, from NVIDIA's data sheet and XLA's target descriptions.

    Attributes:
      name: the full name.
      capability: the CUDA compute capability, (major, minor).
      cores: number of streaming multiprocessors.
      lanes: float32 operations per clock of each multiprocessor.
      clock: in GHz.
      memory: in bytes.
      bandwidth: of the memory, in bytes per second.
      cache: size of the L2 cache in bytes.
      shared: maximum bytes of shared memory per multiprocessor and per block.
      threads: maximum number per multiprocessor.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    clock: float
    memory: int
    bandwidth: int
    cache: int
    shared: tuple[int, int]
    threads: int = 2048


_HOPPER: dict[str, Any] = dict(
    capability=(9, 0), cores=132, lanes=128, clock=1.98, cache=50 * 2**20, shared=(233472, 232448)
)
CARDS = {
    "h100": Card(
        "NVIDIA H100 80GB HBM3", memory=84_942_979_072, bandwidth=3_352_320_000_000, **_HOPPER
    ),
    "h200": Card(
        "NVIDIA H200 141GB HBM3e", memory=151_397_597_184, bandwidth=4_800_000_000_000, **_HOPPER
    ),
    "a100": Card(
        "NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        lanes=64,
        clock=1.41,
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        cache=40 * 2**20,
        shared=(167936, 166912),
    ),
    "l4": Card(
        "NVIDIA L4",
        capability=(8, 9),
        cores=58,
        lanes=128,
        clock=2.04,
        memory=23_034 * 2**20,
        bandwidth=300_096_000_000,
        cache=48 * 2**20,
        shared=(102400, 101376),
        threads=1536,
    ),
}
_NAME = re.compile(r"(\w+)(?::(?:([1-9]\d*)x)?([1-9]\d*))?")


@dataclass(frozen=True)
class Cluster:
    """Hosts with the same number of GPUs of one model each."""

    kind: str
    hosts: int = 1
    per_host: int = 1

    platform = "cuda"  # the platform that programs are lowered for

    @property
    def name(self) -> str:
        """The topology's name, such as h100, h100:8 or h100:2x8."""
        hosts = f"{self.hosts}x" if self.hosts > 1 else ""
        return f"{self.kind}:{hosts}{self.per_host}" if self.num_devices > 1 else self.kind

    @property
    def card(self) -> Card:
        """The GPU model."""
        return CARDS[self.kind]

    @property
    def num_devices(self) -> int:
        """The number of GPUs."""
        return self.hosts * self.per_host

    @property
    def hbm(self) -> int:
        """Bytes of memory of each GPU."""
        return self.card.memory

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        """Options to compile without a GPU for autotuning; None if XLA_FLAGS sets them."""
        known = "--xla_gpu_autotune_level=" in os.environ.get("XLA_FLAGS", "")
        return None if known else {"xla_gpu_autotune_level": 0}

    def devices(self) -> Devices:
        """Devices for a mesh. Programs can be compiled for them, but cannot run on them.

        Raises:
          ValueError: if JAX's CUDA plugin is not installed.
        """
        if not any(
            e.name.startswith("xla_cuda") for e in metadata.entry_points(group="jax_plugins")
        ):
            raise ValueError(
                "a GPU topology needs XLA's GPU compiler, which is not installed: "
                "pip install 'nvae_jax[gpu]'"
            )
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # the check needs a driver
        return topologies.get_topology_desc(
            platform="cuda",
            target_config=target_config(self.card),
            topology=f"{self.hosts}x1x{self.per_host}",
        ).devices

    def seconds(self, kernels: KernelCounts) -> tuple[float, float]:
        """Estimates how many seconds kernels take, as (to move their bytes, to be launched).

        The sum was within 20% of what was measured on an H100.
        """
        return kernels.bytes / (ACHIEVED * self.card.bandwidth), kernels.count * LAUNCH


def parse(name: str) -> Cluster | None:
    """The `Cluster` that a name such as h100, h100:8 or h100:2x8 stands for, or None."""
    found = _NAME.fullmatch(name)
    if not found or found[1] not in CARDS:
        return None
    return Cluster(found[1], int(found[2] or 1), int(found[3] or 1))


def target_config(card: Card) -> str:
    """A `Card` in XLA's text format (stream_executor's GpuTargetConfigProto)."""
    major, minor = card.capability
    return f"""
        gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32
          shared_memory_per_block: 49152 shared_memory_per_core: {card.shared[0]}
          shared_memory_per_block_optin: {card.shared[1]}
          threads_per_core_limit: {card.threads} core_count: {card.cores}
          fpus_per_core: {card.lanes} clock_rate_ghz: {card.clock}
          block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
          memory_bandwidth: {card.bandwidth} device_memory_size: {card.memory}
          l2_cache_size: {card.cache}
          registers_per_core_limit: 65536 registers_per_block_limit: 65536
          cuda_compute_capability {{ major: {major} minor: {minor} }}
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 28 }}
        runtime_version {{ major: 12 minor: 9 patch: 0 }}
        device_description_str: "{card.name}"
    """
