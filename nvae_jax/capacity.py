"""Checks before any work whether images, a training state or files fit this machine."""

import math
import os
import shutil
from pathlib import Path

import jax

from nvae_jax import paths
from nvae_jax.experiment import Experiment
from nvae_jax.state import State

FLOAT_BYTES = 4


def example_bytes(experiment: Experiment) -> int:
    """A lower bound on the memory of one image and its latents, in bytes (float32)."""
    shapes = [experiment.image_shape, *experiment.model.latent_shapes()]
    return FLOAT_BYTES * sum(math.prod(shape) for shape in shapes)


def check_memory(experiment: Experiment, **counts: int) -> None:
    """Checks that images and their latents fit the host's memory.

    Args:
      experiment: an `Experiment`.
      **counts: {name of the user's setting: number of images}.

    Raises:
      ValueError: if they do not fit; the message names the setting.
    """
    size = _host_memory()
    for name, count in counts.items():
        if count * example_bytes(experiment) > size:
            raise ValueError(
                f"{name}={count} needs more than this machine's {size / 1e9:.3g} GB of memory"
            )


def check_state(state: State) -> None:
    """Raises ValueError if a device's shards of an abstract training state exceed its memory."""
    leaves = jax.tree.leaves(state)
    size = sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in leaves)
    platform = leaves[0].sharding.mesh.devices.flat[0].platform
    memory = _device_memory(jax.local_devices(backend=platform))
    if memory is not None and size > memory:
        raise ValueError(
            f"the training state alone needs {size / 1e9:,.1f} GB of each device, which has "
            f"{memory / 1e9:,.1f}: use a smaller model.encoder_width, model.decoder_width or "
            "model.num_groups, or more devices and mesh.fsdp (see launch/plan.py)"
        )


def _device_memory(devices):
    """Memory of each of this host's devices in bytes, or None if it is unknown. CPU devices share
    the host's memory."""
    if devices[0].platform == "cpu":
        return _host_memory() // len(devices)
    return (devices[0].memory_stats() or {}).get("bytes_limit")


def _host_memory():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_disk(folder: str | Path, **sizes: tuple[int, int]) -> None:
    """Checks that files fit the disk of a folder. Buckets have no limit.

    Args:
      folder: where the files will be written; it need not exist yet.
      **sizes: {name of the user's setting: (number of files, bytes of each)}.

    Raises:
      ValueError: if they do not fit; the message names the setting.
    """
    folder = paths.parse(folder).absolute()
    if paths.is_bucket(folder):
        return
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    for name, (count, size) in sizes.items():
        if count * size > free:
            raise ValueError(
                f"{name}={count} may take {count * size / 1e9:.3g} GB, and {existing} has "
                f"{free / 1e9:.3g} GB left"
            )
