"""Reconstructs images from all of their latents, or from the coarsest groups only."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import inputs, outputs, paths, pictures, processes, reporting
from nvae_jax.api import Run
from nvae_jax.models.hierarchy import Hierarchy


def groups_by_scale(hierarchy: Hierarchy) -> list[int]:
    """The number of groups in the coarsest 0, 1, 2, ... scales."""
    scales = np.array(hierarchy.scale_of_group())
    return [int((scales >= scale).sum()) for scale in range(hierarchy.num_scales, -1, -1)]


def parse_groups(words: Sequence[str] | None) -> list[int] | None:
    """Converts the values of a flag to numbers; returns None for None.

    Raises:
      ValueError: if there is none, or one is not a whole number.
    """
    if words is None:
        return None
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"groups must be whole numbers, not {','.join(words)!r}")
    return [int(word) for word in words]


def reconstruct_partially(
    run: Run,
    images: np.ndarray,
    groups: Sequence[int],
    *,
    temperature: ArrayLike = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Reconstructs images with the coarsest groups from the posterior and the others from the
    prior.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1].
      groups: list of K numbers of groups to take from the posterior.
      temperature: temperature of the prior.
      seed: seed of the draws.

    Returns:
      (K, N, H, W, C) in [0, 1].
    """
    return np.stack(
        [run.reconstruct(images, groups=k, temperature=temperature, seed=seed) for k in groups]
    )


def reconstruct_run(
    run: Run,
    images: np.ndarray,
    out: str | Path,
    *,
    source: str = "images",
    groups: Sequence[int] | None = None,
    temperature: ArrayLike = 1.0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Reconstructs images from more and more of their coarsest groups.

    Writes `reconstructions.npz` and `reconstructions.png` to the folder `out`. Each row of the
    picture has an image followed by its reconstructions.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1].
      out: output folder.
      source: the file or split that the images come from.
      groups: numbers of groups to take from the posterior; None uses 0, 1, 2, ... whole scales.
      temperature: temperature of the prior.
      seed: seed of the draws.
      overwrite: whether to replace files made with other settings.

    Raises:
      ValueError: as `Run.reconstruct`, or if the files must not be written (see `outputs.check`).
    """
    groups = groups or groups_by_scale(run.experiment.model.hierarchy)
    metadata = run.metadata(
        **inputs.describe(images, source),
        groups=groups,
        temperature=np.atleast_1d(temperature).tolist(),
        seed=seed,
    )
    arrays, grid = (paths.parse(out) / f"reconstructions.{ending}" for ending in ("npz", "png"))
    outputs.check([arrays, grid], metadata, inputs=[source], overwrite=overwrite)
    copies = reconstruct_partially(run, images, groups, temperature=temperature, seed=seed)

    def write():
        pictures.save_arrays(arrays, images=images, reconstructions=copies, **metadata)
        rows = np.swapaxes(np.concatenate([images[None], copies]), 0, 1)
        rows, columns = rows.reshape(-1, *rows.shape[2:]), rows.shape[1]
        pictures.save_grid(grid, rows, metadata, columns, num_bits=run.num_bits)

    processes.on_primary(write)
    reporting.log(f"{len(images)} image(s), {groups} groups from the posterior: {grid}")
