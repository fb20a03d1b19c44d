"""The device mesh, and where on it a state and a batch lie.

One device is the 1×1 mesh: there is no other code path. Nothing in the model knows of devices;
sums and means over a sharded batch are over the global one.
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
# Smaller kernels are copied to every device: splitting them would save nothing, and the optimiser
# concatenates them.
SMALLEST_SHARDED = 2**12
Convolve = Callable[[jax.Array, jax.Array], jax.Array]
Devices = Sequence[Any]  # of `jax.Device`, of which jaxlib tells type checkers nothing


@dataclass(frozen=True)
class MeshSettings:
    """Sizes of the mesh's axes; -1 takes the devices that the other axis leaves.

    Attributes:
      data: devices that hold whole copies of the parameters.
      fsdp: devices that share one copy of parameters and optimiser state.
    """

    data: int = -1
    fsdp: int = 1

    def __post_init__(self):
        sizes = (self.data, self.fsdp)
        if any(size < 1 and size != -1 for size in sizes) or sizes == (-1, -1):
            raise ValueError(
                "mesh.data and mesh.fsdp must be positive, or one of them -1 for what is left: "
                f"they are {self.data} and {self.fsdp}"
            )


def mesh_shape(settings: MeshSettings, num_devices: int) -> tuple[int, int]:
    """The sizes (data, fsdp) of the mesh of so many devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    fixed = settings.fsdp if settings.data == -1 else settings.data
    left = num_devices // fixed
    data = left if settings.data == -1 else settings.data
    fsdp = left if settings.fsdp == -1 else settings.fsdp
    if data * fsdp != num_devices:
        raise ValueError(
            f"mesh.data={settings.data} times mesh.fsdp={settings.fsdp} does not fit the "
            f"{num_devices} device(s) there are: --config.mesh.data=-1 takes all that fsdp leaves"
        )
    return data, fsdp


def make_mesh(settings: MeshSettings, devices: Devices | None = None) -> Mesh:
    """The mesh of axes `data` and `fsdp` over all devices (of all hosts).

    Devices that share kernels are neighbours: of one host, or of hosts one after the other. Along
    both axes hosts come in the order of processes, so that they hold consecutive parts of a batch.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(settings, len(devices))
    return Mesh(_grid(devices, *shape), AXES, axis_types=(AxisType.Auto,) * 2)


def _grid(devices, data, fsdp):
    """One order of the devices, whatever the sizes: a program may have meshes of several."""
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    hosts = Counter(device.process_index for device in devices)
    local = len(devices) // len(hosts)
    if len(set(hosts.values())) == 1:
        devices = mesh_utils.create_hybrid_device_mesh(
            (local,), (len(hosts),), devices, process_is_granule=True
        )
    return np.array(devices).reshape(data, fsdp)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding that puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
    """The sharding that splits the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def shard_batch(array: Any) -> jax.Array:
    """Divides the leading axis of `array`, the same in every process, among all devices of all
    hosts. Where they do not divide it, as many take part as do, and the others do the same again.

    A program that computes everything from such an array divides its work the same way.
    """
    return _place(array, _over_rows(len(array)))


def replicate(tree: Any) -> Any:
    """Puts a copy of every array, the same in every process, on all devices of all hosts."""
    return jax.tree.map(lambda array: _place(array, replicated(make_mesh(MeshSettings()))), tree)


def gathered(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step`, for `jax.jit`, such that of its results (B, ...) every device computes the rows that
    `shard_batch` gave it, and then gets those of the others: every process can read them."""

    @wraps(step)
    def shared(*arguments):
        def spread(rows):
            return jax.lax.with_sharding_constraint(rows, _over_rows(len(rows)))

        rows = jax.tree.map(spread, step(*arguments))
        everywhere = replicated(make_mesh(MeshSettings()))
        return jax.lax.with_sharding_constraint(rows, everywhere)

    return shared


def _over_rows(count):
    parts = math.gcd(count, jax.device_count())
    mesh = make_mesh(MeshSettings(data=parts, fsdp=-1))
    return NamedSharding(mesh, PartitionSpec("data"))


def _place(array, sharding):
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.device_put(array, sharding)
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    array = np.asarray(array)  # `device_put` would compare the processes' arrays, by a collective
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def state_shardings(mesh: Mesh | AbstractMesh, abstract_state: Any) -> Any:
    """A sharding for every array of the state: of kernels (k, k, in, out), stacked or not, the last
    axis is split among `fsdp` where it divides. Everything else is whole on every device."""

    def place(array):
        if not is_shared(mesh, array):
            return replicated(mesh)
        return NamedSharding(mesh, PartitionSpec(*[None] * (array.ndim - 1), "fsdp"))

    return jax.tree.map(place, abstract_state)


def is_shared(mesh: Mesh | AbstractMesh, array: Any) -> bool:
    """Whether devices share an array of the state: a kernel, or a stack of kernels."""
    size, kernel = mesh.shape["fsdp"], array.shape[-4:]
    if size == 1 or len(kernel) < 4 or kernel[-1] % size:
        return False
    return math.prod(kernel) >= SMALLEST_SHARDED


def constrain(mesh: Mesh, tree: Any) -> Any:
    """In a program: keeps arrays, and their gradients, where `state_shardings` has them."""
    return jax.lax.with_sharding_constraint(tree, state_shardings(mesh, tree))


def convolve_gathered(mesh: Mesh, convolve: Convolve, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """In a program: `convolve(x, kernel)` of a batch over all devices, by a kernel that they share.

    Each device gathers the kernel and convolves its part of the batch. The gradient of that is
    fixed by it too: each device gets the sum over the batch of the share that it keeps, by a
    reduce-scatter, and where `data` is more than 1 an all-reduce of the shares.
    """
    if not is_shared(mesh, kernel):
        return convolve(x, kernel)

    def of_device(x, share):
        return convolve(x, jax.lax.all_gather(share, "fsdp", axis=share.ndim - 1, tiled=True))

    batch, shares = PartitionSpec(AXES), PartitionSpec(None, None, None, "fsdp")
    return jax.shard_map(
        of_device, mesh=mesh, in_specs=(batch, shares), out_specs=batch, check_vma=False
    )(x, kernel)


def with_shardings(abstract_state: Any, shardings: Any) -> Any:
    """Adds shardings to the abstract arrays of a state, to restore it by."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract_state, shardings
    )


def check_batch_size(mesh: Mesh | AbstractMesh, batch_size: int, key: str, parts: int = 1) -> None:
    """Raises ValueError unless every device gets as many examples in each of the batch's parts."""
    if batch_size % (mesh.size * parts):
        times = f" times train.accumulation_steps={parts}" if parts > 1 else ""
        raise ValueError(f"{key}={batch_size} cannot be divided among {mesh.size} devices{times}")


def round_up(mesh: Mesh | None, batch_size: int) -> int:
    """Rounds a batch size up to one that the devices of the mesh (None: all there are) share
    evenly."""
    devices = jax.device_count() if mesh is None else mesh.size
    return -(-batch_size // devices) * devices


def to_devices(mesh: Mesh, local: np.ndarray) -> jax.Array:
    """Joins every host's part of a batch, along its leading axis, into one global array."""
    array = jax.make_array_from_process_local_data(over_batch(mesh), np.asarray(local))
    if mesh.devices.flat[0].platform == "cpu":
        # A program whose input is still being copied runs on another thread, and glibc gives back
        # what that frees, whatever `allocator` asks for: some steps would take three times as long.
        jax.block_until_ready(array)
    return array
