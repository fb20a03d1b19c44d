"""The device mesh, and how states and batches are sharded over it.

A single device is a 1×1 mesh, so there is only one code path. The model does not depend on the
devices: sums and means over a sharded batch are over the global batch.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")
# Smaller kernels are replicated: sharding them would save little memory, and the optimiser
# concatenates them.
MIN_SHARDED_SIZE = 2**12
Convolve = Callable[[jax.Array, jax.Array], jax.Array]
Devices = Sequence[Any]  # of `jax.Device`, for which jaxlib has no type annotations


@dataclass(frozen=True)
class MeshSettings:
    """Sizes of the mesh's axes; -1 stands for all devices divided by the other axis.

    Attributes:
      data: number of replicas of the parameters.
      fsdp: number of devices that shard one replica of parameters and optimiser state.

    Raises:
      ValueError: if a size is neither positive nor -1, or both are -1.
    """

    data: int = -1
    fsdp: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp)
        if any(size < 1 and size != -1 for size in sizes) or sizes == (-1, -1):
            raise ValueError(
                "mesh.data and mesh.fsdp must be positive, or one of them -1 for the remaining "
                f"devices: they are {self.data} and {self.fsdp}"
            )


def mesh_shape(settings: MeshSettings, num_devices: int) -> tuple[int, int]:
    """The sizes (data, fsdp) of the mesh for a number of devices.

    Raises:
      ValueError: if the product of the sizes is not the number of devices.
    """
    fixed = settings.fsdp if settings.data == -1 else settings.data
    left = num_devices // fixed
    data = left if settings.data == -1 else settings.data
    fsdp = left if settings.fsdp == -1 else settings.fsdp
    if data * fsdp != num_devices:
        raise ValueError(
            f"mesh.data={settings.data} times mesh.fsdp={settings.fsdp} does not fit the "
            f"{num_devices} device(s): --config.mesh.data=-1 uses all remaining devices"
        )
    return data, fsdp


def make_mesh(settings: MeshSettings, devices: Devices | None = None) -> Mesh:
    """Makes a mesh with the axes `data` and `fsdp` over all devices of all hosts.

    Devices that shard the same kernels are neighbours, on one host or on consecutive hosts. Hosts
    are in the order of their processes along both axes, so that each holds a contiguous part of a
    batch.

    Args:
      settings: the sizes of the axes.
      devices: devices of the mesh; None uses all.

    Raises:
      ValueError: if the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(settings, len(devices))
    return Mesh(_grid(devices, *shape), AXES, axis_types=(AxisType.Auto,) * 2)


def _grid(devices, data, fsdp):
    """Arranges the devices in the same order for all sizes, because one program can use several
    meshes."""
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    hosts = Counter(device.process_index for device in devices)
    local = len(devices) // len(hosts)
    if len(set(hosts.values())) == 1:
        devices = mesh_utils.create_hybrid_device_mesh(
            (local,), (len(hosts),), devices, process_is_granule=True
        )
    return np.array(devices).reshape(data, fsdp)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding that replicates an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def shard_batch(array: Any) -> jax.Array:
    """Shards the leading axis of `array`, equal in every process, over all devices of all hosts.

    If the number of devices does not divide the axis, it is sharded over as many devices as do
    divide it, and the remaining devices hold replicas. A program that computes everything from such
    an array shards its work in the same way.
    """
    return _place(array, _batch_sharding(len(array)))


def replicate(tree: Any) -> Any:
    """Replicates every array of a tree, equal in every process, on all devices of all hosts."""
    return jax.tree.map(lambda array: _place(array, replicated(make_mesh(MeshSettings()))), tree)


def gathered(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a step, for use with `jax.jit`, so that every process can read all of its results.

    Each device computes the rows of the results (B, ...) that `shard_batch` assigns to it; then the
    rows are gathered on all devices.
    """

    @wraps(step)
    def sharded_step(*arguments):
        def shard(rows):
            return jax.lax.with_sharding_constraint(rows, _batch_sharding(len(rows)))

        rows = jax.tree.map(shard, step(*arguments))
        everywhere = replicated(make_mesh(MeshSettings()))
        return jax.lax.with_sharding_constraint(rows, everywhere)

    return sharded_step


def _batch_sharding(count):
    """The sharding of a leading axis of `count` rows over as many devices as divide it."""
    shards = math.gcd(count, jax.device_count())
    mesh = make_mesh(MeshSettings(data=shards, fsdp=-1))
    return NamedSharding(mesh, PartitionSpec("data"))


def _place(array, sharding):
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, sharding)
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    array = np.asarray(array)  # `device_put` would compare the processes' arrays in a collective
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def state_shardings(mesh: Mesh | AbstractMesh, abstract_state: Any) -> Any:
    """The sharding of every array of a state.

    Kernels (k, k, in, out), stacked or not, are sharded over `fsdp` along their last axis if it can
    be divided. Everything else is replicated.
    """

    def place(array):
        if not is_sharded(mesh, array):
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * (array.ndim - 1), "fsdp"))

    return jax.tree.map(place, abstract_state)


def is_sharded(mesh: Mesh | AbstractMesh, array: Any) -> bool:
    """Whether an array of the state, a kernel or a stack of kernels, is sharded over `fsdp`."""
    size, kernel = mesh.shape["fsdp"], array.shape[-4:]
    if size == 1 or len(kernel) < 4 or kernel[-1] % size:
        return False
    return math.prod(kernel) >= MIN_SHARDED_SIZE


def constrain(mesh: Mesh, tree: Any) -> Any:
    """Inside a program, constrains arrays and their gradients to the shardings of
    `state_shardings`."""
    if mesh.size == 1:
        return tree  # one device has everything
    return jax.lax.with_sharding_constraint(tree, state_shardings(mesh, tree))


def convolve_gathered(mesh: Mesh, convolve: Convolve, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Inside a program, applies `convolve(x, kernel)` to a sharded batch with a sharded kernel.

    Each device gathers the kernel and convolves its shard of the batch. This also determines the
    gradient: a reduce-scatter sums each device's shard of the kernel's gradient over the batch,
    followed by an all-reduce of the shards if `data` is more than 1.
    """
    if not is_sharded(mesh, kernel):
        return convolve(x, kernel)

    def convolve_shard(x, shard):
        return convolve(x, jax.lax.all_gather(shard, "fsdp", axis=shard.ndim - 1, tiled=True))

    batch, shards = PartitionSpec(AXES), PartitionSpec(None, None, None, "fsdp")
    return jax.shard_map(
        convolve_shard, mesh=mesh, in_specs=(batch, shards), out_specs=batch, check_vma=False
    )(x, kernel)


def with_shardings(abstract_state: Any, shardings: Any) -> Any:
    """Adds shardings to the abstract arrays of a state, as restoring it requires."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract_state, shardings
    )


def check_batch_size(
    mesh: Mesh | AbstractMesh, batch_size: int, key: str, micro_batches: int = 1
) -> None:
    """Raises ValueError unless every device gets equally many examples in each micro-batch."""
    if batch_size % (mesh.size * micro_batches):
        times = f" times train.accumulation_steps={micro_batches}" if micro_batches > 1 else ""
        raise ValueError(f"{key}={batch_size} cannot be divided among {mesh.size} devices{times}")


def round_up(mesh: Mesh | None, batch_size: int) -> int:
    """Rounds a batch size up to a multiple of the number of devices in the mesh; None stands for
    all devices."""
    devices = jax.device_count() if mesh is None else mesh.size
    return -(-batch_size // devices) * devices


def to_devices(mesh: Mesh, local: np.ndarray) -> jax.Array:
    """Combines every host's shard of a batch, along the leading axis, into one global array."""
    array = jax.make_array_from_process_local_data(over_batch(mesh), np.asarray(local))
    if mesh.devices.flat[0].platform == "cpu":
        # A program whose input is still being copied runs on another thread, and glibc returns
        # memory freed by that thread to the system in spite of `allocator`: some steps would take
        # three times as long.
        jax.block_until_ready(array)
    return array
