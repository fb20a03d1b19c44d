"""Encodes images to files of latents, and decodes such files to images."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import checks, inputs, outputs, paths, pictures, processes, reporting
from nvae_jax.api import Run

KINDS = ("sample", "mean")


def encode_run(
    run: Run,
    images: np.ndarray,
    out: str | Path,
    *,
    source: str = "images",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Writes for every latent group the posterior's mean and one draw from the posterior.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1].
      out: an `.npz` file. Its arrays are `images` and, for group NN (the coarsest is 00), `mean_NN`
        and `sample_NN` (N, h, w, z). Each group's mean is conditioned on the means of the coarser
        groups.
      source: the file or split that the images come from.
      seed: seed of the draw.
      overwrite: whether to replace a file made with other settings.

    Raises:
      ValueError: if `out` must not be written; see `outputs.check`.
    """
    if paths.parse(out).suffix != ".npz":
        raise ValueError(f"--out={out} must end in .npz")
    metadata = run.metadata(**inputs.describe(images, source), seed=seed)
    outputs.check([out], metadata, inputs=[source], overwrite=overwrite)
    arrays = {"images": images}
    for kind, temperature in (("mean", 0.0), ("sample", 1.0)):
        latents = run.encode(images, temperature=temperature, seed=seed)
        arrays.update({f"{kind}_{group:02d}": z for group, z in enumerate(latents)})
    processes.on_primary(lambda: pictures.save_arrays(out, **arrays, **metadata))
    reporting.log(f"{len(images)} image(s) encoded to {out}: {run.num_groups} groups")


def load_latents(
    path: str | Path, kind: str = "sample", groups: int | None = None
) -> list[np.ndarray]:
    """Loads latents written by `encode_run`: a list of (N, h, w, z) arrays, coarsest group first.

    Args:
      path: the `.npz` file.
      kind: "sample" or "mean".
      groups: number of groups to load, from the coarsest; None loads all.

    Raises:
      ValueError: if there is no such file, or it does not contain so many groups.
    """
    arrays = inputs.load_arrays(path)
    names = sorted(name for name in arrays if re.fullmatch(rf"{kind}_\d+", name))
    if not names:
        raise ValueError(f"{path} has no latents {kind}_00, {kind}_01 ...")
    if names != [f"{kind}_{group:02d}" for group in range(len(names))]:
        raise ValueError(f"{path} lacks latents between {names[0]} and {names[-1]}")
    if groups is not None and groups > len(names):
        raise ValueError(f"{path} has latents of {len(names)} groups, not of {groups}")
    return [arrays[name] for name in names[:groups]]


def decode_run(
    run: Run,
    latents: Sequence[np.ndarray],
    out: str | Path,
    *,
    source: str = "latents",
    temperature: ArrayLike = 1.0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Decodes latents and writes the images: `decoded.npz` (key `images`, integers as
    `pictures.to_values` returns them) and a grid, `decoded.png`.

    Args:
      run: an `api.Run`.
      latents: a list of (N, h, w, z) arrays for the coarsest groups, or for all. The other groups
        are drawn from the prior.
      out: output folder.
      source: the file that the latents come from.
      temperature: temperature of the prior.
      seed: seed of the draws from the prior.
      overwrite: whether to replace files made with other settings.

    Raises:
      ValueError: if the latents do not fit the model, or the files must not be written (see
        `outputs.check`).
    """
    with checks.naming(source):
        checks.latents(latents, run.latent_shapes)
    metadata = run.metadata(
        **inputs.describe(latents, source),
        groups=len(latents),
        temperature=np.atleast_1d(temperature).tolist(),
        seed=seed,
    )
    arrays, grid = paths.parse(out) / "decoded.npz", paths.parse(out) / "decoded.png"
    outputs.check([arrays, grid], metadata, inputs=[source], overwrite=overwrite)
    images, bits = run.decode(latents, temperature=temperature, seed=seed), run.num_bits

    def write():
        values, white = pictures.to_values(images, bits), pictures.value_metadata(bits)
        pictures.save_arrays(arrays, images=values, **metadata, **white)
        pictures.save_grid(grid, images[:100], metadata, num_bits=bits)

    processes.on_primary(write)
    reporting.log(f"{len(images)} image(s) written to {arrays}")
