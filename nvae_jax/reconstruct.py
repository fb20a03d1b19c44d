"""Reconstructions, whole and partial: what each scale of latents says about an image."""

from pathlib import Path

import numpy as np

from nvae_jax import pictures


def groups_by_scale(hierarchy):
    """How many of the coarsest groups make up none, one, two ... of the scales."""
    scales = np.array(hierarchy.scale_of_group())
    return [int((scales >= scale).sum()) for scale in range(hierarchy.num_scales, -1, -1)]


def parse_groups(words):
    """Numbers from the words of a flag, or None. Raises ValueError for one that is none."""
    if words is None:
        return None
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"groups must be whole numbers, not {','.join(words)!r}")
    return [int(word) for word in words]


def reconstruct_partially(run, images, groups, *, temperature=1.0, seed=0):
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


def reconstruct_run(run, images, out, *, groups=None, temperature=1.0, seed=0):
    """Writes `reconstructions.npz` and `reconstructions.png`: a row an image, which comes first,
    then its reconstructions with ever more of the coarsest groups from the posterior.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1].
      out: a folder.
      groups: numbers of groups; None takes whole scales: none of them, the coarsest, and so on.
      temperature: of the prior.
      seed: of the draws.
    """
    groups = groups or groups_by_scale(run.experiment.model.hierarchy)
    copies = reconstruct_partially(run, images, groups, temperature=temperature, seed=seed)
    temperature = np.atleast_1d(temperature).tolist()
    metadata = run.metadata(groups=groups, temperature=temperature, seed=seed)
    out, rows = Path(out), np.swapaxes(np.concatenate([images[None], copies]), 0, 1)
    pictures.save_arrays(
        out / "reconstructions.npz", images=images, reconstructions=copies, **metadata
    )
    columns = rows.shape[1]
    grid = rows.reshape(-1, *rows.shape[2:])
    pictures.save_grid(out / "reconstructions.png", grid, metadata, columns)
    print(
        f"{len(images)} image(s), {groups} groups of the posterior: {out / 'reconstructions.png'}"
    )
