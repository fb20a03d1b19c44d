"""What training with a config needs on each device, judged from the traced step alone."""

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

# Programs are traced once, with a batch that is prime and larger than any other dimension: what
# grows with the batch are the arrays whose size it divides.
EXAMPLES = 10_007
GB = 1e9  # bytes


class Setting(NamedTuple):
    """The settings that decide how much memory training takes."""

    dtype: str
    remat: str
    fsdp: int
    parts: int  # accumulation steps


@dataclass(frozen=True)
class MemoryEstimate:
    """What one device needs to train with a setting.

    Attributes:
      state: bytes of parameters, optimiser and statistics.
      activations: bytes of arrays that grow with the batch, when most are alive.
      peak: bytes of all arrays beside the state (activations, gradients, casts of parameters),
        when most are alive; that may be another moment.
    """

    state: int
    activations: int
    peak: int

    @property
    def total(self) -> int:
        """Bytes of state and of all other arrays together."""
        return self.state + self.peak


class Estimator:
    """Estimates for one config; every combination of dtype and remat is traced once.

    Raises:
      ValueError: a bad config, or one whose image shape is that of its data.
    """

    def __init__(self, config: ConfigDict):
        self._config = planning_config(config)
        self._images = config.train.batch_size
        self.state = self._traceable("float32", "none").abstract_state()
        self._trace = cache(self._trace)
        self._peak = cache(self._peak)

    @property
    def num_params(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(p.shape) for p in jax.tree.leaves(self.state.params))

    def need(self, setting: Setting, devices: int) -> MemoryEstimate:
        """The memory that each of so many devices needs with a setting.

        Raises:
          ValueError: the devices do not share the batch evenly.
        """
        mesh = planned_mesh(devices, setting.fsdp)
        sharding.check_batch_size(mesh, self._images, "train.batch_size", setting.parts)
        examples = self._images // (mesh.size * setting.parts)
        traced = (setting.dtype, setting.remat, examples)
        # Parts of a batch: the sum of their gradients is one array more a parameter.
        sums = bytes_on_device(self.state.params, mesh) if setting.parts > 1 else 0
        return MemoryEstimate(
            state=bytes_on_device(self.state, mesh),
            activations=self._peak(*traced, fixed=0),
            peak=self._peak(*traced, fixed=1 / setting.fsdp) + sums + self._gathered(setting, mesh),
        )

    def _gathered(self, setting, mesh):
        """Bytes of whole kernels that are kept to the backward pass. Where convolutions' inputs are
        computed again there, kernels are gathered again, a few at a time."""
        if setting.remat != "none":
            return 0
        shared = (p for p in jax.tree.leaves(self.state.params) if sharding.is_shared(mesh, p))
        return sum(p.size for p in shared) * jax.numpy.dtype(build.DTYPES[setting.dtype]).itemsize

    def flops(self, setting: Setting, devices: int) -> int:
        """Floating-point operations that each device does in a training step."""
        examples = self._images // (devices * setting.parts)
        jaxpr = self._trace(setting.dtype, setting.remat)
        return setting.parts * count_flops(jaxpr, lambda n: rescaled(n, examples))

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
        config.model.update(dtype=dtype, remat=remat, norm_groups=1)
        config.mesh.update(data=-1, fsdp=1)
        config.train.update(batch_size=EXAMPLES, accumulation_steps=1)
        return build.build(config, jax.devices()[:1]).portable()


def planning_config(config: ConfigDict) -> ConfigDict:
    """A copy of the config to plan with: latent groups run in loops, as they do on accelerators.

    Raises:
      ValueError: the image shape is not in the config.
    """
    if not (config.data.image_size and config.data.channels):
        raise ValueError(
            "the config takes its image shape from the data; to plan, give it: for example "
            "--config.data.image_size=64 --config.data.channels=3"
        )
    config = build.resolve(config).copy_and_resolve_references()
    config.model.unroll = config.model.unroll or 1
    return config.lock()


def planned_mesh(devices: int, fsdp: int, data: int = -1) -> AbstractMesh:
    """A mesh of so many devices, none of which has to exist."""
    shape = sharding.mesh_shape(sharding.MeshSettings(data, fsdp), devices)
    return AbstractMesh(shape, sharding.AXES)


def bytes_on_device(arrays: Any, mesh: Mesh | AbstractMesh) -> int:
    """Bytes on each device of a mesh, of a tree of arrays sharded as a training state is."""
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
    """Bytes or operations of a program traced with `EXAMPLES` examples, as they are for `examples`.

    `fixed` multiplies what does not grow with the number of examples.
    """
    per_example, rest = divmod(count, EXAMPLES)
    return int(count * fixed) if rest else per_example * examples
