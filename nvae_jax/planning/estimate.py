"""Estimates the memory and operations of training on each device from the traced step."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from nvae_jax import build, sharding
from nvae_jax.planning.flops import count_flops
from nvae_jax.planning.liveness import peak_bytes

# Programs are traced once, with a prime batch size larger than any other dimension. Arrays whose
# size it divides are those that grow with the batch.
EXAMPLES = 10_007
GB = 1e9  # bytes


class Setting(NamedTuple):
    """The settings that determine the memory of training."""

    dtype: str
    remat: str
    fsdp: int
    micro_batches: int  # train.accumulation_steps


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that one device needs to train with a setting.

    Attributes:
      state: bytes of parameters, optimiser state and statistics.
      activations: peak bytes of arrays that grow with the batch.
      peak: peak bytes of all arrays besides the state (activations, gradients, casts of
        parameters), possibly at another time.
    """

    state: int
    activations: int
    peak: int

    @property
    def total(self) -> int:
        """The total memory in bytes."""
        return self.state + self.peak


class Estimator:
    """Estimates for one config; every combination of dtype and remat is traced once.

    Raises:
      ValueError: if the config is not valid, or does not contain the image shape.
    """

    def __init__(self, config: ConfigDict):
        self._config = planning_config(config)
        self._images = config.train.batch_size
        self.state = self._traceable("float32", "none").abstract_state()
        self._trace = cache(self._trace)
        self._peak = cache(self._peak)

    @property
    def num_params(self) -> int:
        """The number of trained parameters."""
        return sum(math.prod(p.shape) for p in jax.tree.leaves(self.state.params))

    def need(self, setting: Setting, devices: int) -> MemoryEstimate:
        """Estimates the memory that each of `devices` devices needs with a setting.

        Raises:
          ValueError: if the batch cannot be divided among the devices.
        """
        mesh = planned_mesh(devices, setting.fsdp)
        sharding.check_batch_size(mesh, self._images, "train.batch_size", setting.micro_batches)
        examples = self._images // (mesh.size * setting.micro_batches)
        traced = (setting.dtype, setting.remat, examples)
        # With micro-batches, the sum of their gradients needs a further array per parameter.
        sums = bytes_on_device(self.state.params, mesh) if setting.micro_batches > 1 else 0
        return MemoryEstimate(
            state=bytes_on_device(self.state, mesh),
            activations=self._peak(*traced, fixed=0),
            peak=self._peak(*traced, fixed=1 / setting.fsdp) + sums + self._gathered(setting, mesh),
        )

    def _gathered(self, setting, mesh):
        """Bytes of gathered kernels that are stored for the backward pass.

        With rematerialisation, kernels are gathered again there, only a few at a time.
        """
        if setting.remat != "none":
            return 0
        sharded = (p for p in jax.tree.leaves(self.state.params) if sharding.is_sharded(mesh, p))
        return sum(p.size for p in sharded) * jax.numpy.dtype(build.DTYPES[setting.dtype]).itemsize

    def flops(self, setting: Setting, devices: int) -> int:
        """The number of floating-point operations of each device per training step."""
        examples = self._images // (devices * setting.micro_batches)
        jaxpr = self._trace(setting.dtype, setting.remat)
        return setting.micro_batches * count_flops(jaxpr, lambda n: rescaled(n, examples))

    def _peak(self, dtype, remat, examples, fixed):
        return peak_bytes(
            self._trace(dtype, remat),
            lambda array: rescaled(num_bytes(array), examples, fixed),
            aliased=len(jax.tree.leaves(self.state)),
        )

    def _trace(self, dtype, remat):
        experiment = self._traceable(dtype, remat)
        return experiment.train_step().trace(self.state, experiment.abstract_images()).jaxpr

    def _traceable(self, dtype, remat):
        config = self._config.copy_and_resolve_references()
        # Loops over groups are traced much faster than unrolled groups.
        unroll = config.model.unroll or 1
        config.model.update(dtype=dtype, remat=remat, norm_groups=1, unroll=unroll)
        config.mesh.update(data=-1, fsdp=1)
        config.train.update(batch_size=EXAMPLES, accumulation_steps=1)
        return build.build(config, jax.devices()[:1]).portable()


def planning_config(config: ConfigDict) -> ConfigDict:
    """Returns a locked copy of the config with the image shape.

    Raises:
      ValueError: if the config does not contain the image shape.
    """
    if not (config.data.image_size and config.data.channels):
        raise ValueError(
            "the config takes its image shape from the data; for planning set it, for example "
            "--config.data.image_size=64 --config.data.channels=3"
        )
    return build.resolve(config).copy_and_resolve_references().lock()


def planned_mesh(devices: int, fsdp: int, data: int = -1) -> AbstractMesh:
    """Makes an abstract mesh of so many devices, which need not exist."""
    shape = sharding.mesh_shape(sharding.MeshSettings(data, fsdp), devices)
    return AbstractMesh(shape, sharding.AXES)


def bytes_on_device(arrays: Any, mesh: Mesh | AbstractMesh) -> int:
    """The size in bytes, on each device of a mesh, of a tree of arrays sharded like a state."""
    placed = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(s.shard_shape(a.shape), a.dtype),
        arrays,
        sharding.state_shardings(mesh, arrays),
    )
    return sum(num_bytes(a) for a in jax.tree.leaves(placed))


def num_bytes(array: jax.ShapeDtypeStruct) -> int:
    """The size in bytes of an abstract array."""
    return math.prod(array.shape) * array.dtype.itemsize


def rescaled(count: int, examples: int, fixed: float = 1) -> int:
    """Converts bytes or operations from a program traced with `EXAMPLES` examples to `examples`.

    Args:
      count: the number for the traced program.
      examples: number of examples.
      fixed: factor of numbers that do not grow with the number of examples.
    """
    per_example, rest = divmod(count, EXAMPLES)
    return int(count * fixed) if rest else per_example * examples
