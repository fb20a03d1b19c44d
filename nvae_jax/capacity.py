"""Refuses from its arithmetic, before any work, what this machine cannot hold."""

import math
import os
import shutil
from pathlib import Path

import jax

from nvae_jax import paths
from nvae_jax.build import Experiment
from nvae_jax.state import State

FLOAT_BYTES = 4


def example_bytes(experiment: Experiment) -> int:
    """The bytes that one image and its latents take at least, as float32."""
    shapes = [experiment.image_shape, *experiment.model.latent_shapes()]
    return FLOAT_BYTES * sum(math.prod(shape) for shape in shapes)


def check_memory(experiment: Experiment, **counts: int) -> None:
    """Raises ValueError where so many examples, {name as the user knows it: count}, are more than
    the memory holds."""
    size = _host_memory()
    for name, count in counts.items():
        if count * example_bytes(experiment) > size:
            raise ValueError(
                f"{name}={count} takes more than the {size / 1e9:.3g} GB of memory that there are"
            )


def check_state(state: State) -> None:
    """Raises ValueError where a device's parts of an abstract training state are more than its
    memory holds."""
    leaves = jax.tree.leaves(state)
    size = sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)
    platform = leaves[0].sharding.mesh.devices.flat[0].platform
    memory = _device_memory(jax.local_devices(backend=platform))
    if memory is not None and size > memory:
        raise ValueError(
            f"the training state alone needs {size / 1e9:,.1f} GB of each device, which has "
            f"{memory / 1e9:,.1f}: take a smaller model.encoder_width, model.decoder_width or "
            "model.num_groups, or more devices and mesh.fsdp (see launch/plan.py)"
        )


def _device_memory(devices):
    """Bytes of each of this host's devices; of CPUs, a share of the host's. None: unknown."""
    if devices[0].platform == "cpu":
        return _host_memory() // len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit")


def _host_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_disk(folder: str | Path, **sizes: tuple[int, int]) -> None:
    """Raises ValueError where files of so many bytes, {name as the user knows it: (count, bytes of
    each)}, do not fit the disk of `folder`, which may have to be made yet. A bucket holds all."""
    folder = paths.parse(folder).absolute()
    if paths.is_bucket(folder):
        return
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    for name, (count, size) in sizes.items():
        if count * size > free:
            raise ValueError(
                f"{name}={count} may take {count * size / 1e9:.3g} GB, and {there} has "
                f"{free / 1e9:.3g} GB left"
            )
