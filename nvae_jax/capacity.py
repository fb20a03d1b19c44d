"""Refuses from its arithmetic, before any work, what this machine cannot hold."""

import math
import os
import shutil
from pathlib import Path

FLOAT_BYTES = 4


def example_bytes(experiment):
    """What an image and its latents take at least, as float32."""
    shapes = [experiment.image_shape, *experiment.model.latent_shapes()]
    return FLOAT_BYTES * sum(math.prod(shape) for shape in shapes)


def check_memory(experiment, **counts):
    """Raises ValueError where so many examples, {name as the user knows it: count}, are more than
    the memory holds."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, count in counts.items():
        if count * example_bytes(experiment) > size:
            raise ValueError(
                f"{name}={count} takes more than the {size / 1e9:.3g} GB of memory that there are"
            )


def check_disk(folder, **sizes):
    """Raises ValueError where files of so many bytes, {name as the user knows it: (count, bytes of
    each)}, do not fit the disk of `folder`, which may have to be made yet."""
    folder = Path(folder).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    for name, (count, size) in sizes.items():
        if count * size > free:
            raise ValueError(
                f"{name}={count} may take {count * size / 1e9:.3g} GB, and {there} has "
                f"{free / 1e9:.3g} GB left"
            )
