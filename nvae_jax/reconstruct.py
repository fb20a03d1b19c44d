"""Reconstructions, whole and partial: what each scale of latents says about an image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import distributed, inputs, outputs, paths, pictures, reporting
from nvae_jax.api import Run
from nvae_jax.models.hierarchy import Hierarchy


def groups_by_scale(hierarchy: Hierarchy) -> list[int]:
    """How many of the coarsest groups make up none, one, two ... of the scales."""
    scales = np.array(hierarchy.scale_of_group())
    return [int((scales >= scale).sum()) for scale in range(hierarchy.num_scales, -1, -1)]


def parse_groups(words: Sequence[str] | None) -> list[int] | None:
    """Numbers from the words of a flag, or None. Raises ValueError for one that is none."""
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
    """Reconstructions with some of the coarsest groups from the posterior, the rest from the prior.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1].
      groups: numbers of groups, a list of K.
      temperature: of the prior.
      seed: of the draws.

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
    """Writes `reconstructions.npz` and `reconstructions.png`: a row an image, which comes first,
    then its reconstructions with ever more of the coarsest groups from the posterior.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1].
      out: a folder.
      source: the file or split that the images come from.
      groups: numbers of groups; None takes whole scales: none of them, the coarsest, and so on.
      temperature: of the prior.
      seed: of the draws.
      overwrite: whether to replace files of other settings.

    Raises:
      ValueError: as `Run.reconstruct`, or the files may not be written; see `outputs.check`.
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

    distributed.on_primary(write)
    reporting.log(f"{len(images)} image(s), {groups} groups of the posterior: {grid}")
