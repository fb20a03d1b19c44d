"""Restores images for the command `restore`, and writes what came out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import files, inputs, outputs, paths, pictures
from nvae_jax.api import Run
from nvae_jax.restoration import baselines
from nvae_jax.restoration.degradation import check_degradation, degrade, observe
from nvae_jax.restoration.restore import METHODS, check_settings, default_method, given, restore
from nvae_jax.restoration.smooth import grow

SHOWN = 4  # samples of each image in the picture


def restore_run(
    run: Run,
    images: np.ndarray,
    out: str | Path,
    *,
    source: str = "images",
    whole: bool = False,
    mask: ArrayLike | None = None,
    scale: int = 1,
    noise: float = 0.0,
    method: str | None = None,
    num_samples: int = 8,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, float]:
    """Writes `restored.npz` and `restored.png`: a row an image, with what is known of it, the plain
    restoration, the best one and some of the samples.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1], as they are known.
      out: a folder.
      source: the file or split that the images come from.
      whole: whether the images are whole: what is not to be known of them is taken away here, and
        they are what the restored ones are compared with.
      mask: see `restore`, like all below but the last.
      scale: the same.
      noise: the same.
      method: the same.
      num_samples: the same.
      settings: of the method.
      seed: of all draws.
      overwrite: whether to replace files of other settings.

    Returns:
      {name: mean PSNR in dB}, which is printed too; {} unless the images are whole.

    Raises:
      ValueError: as `restore`, or the files may not be written; see `outputs.check`.
    """
    method = method or default_method(noise)
    settings = {**METHODS.get(method, {}), **given(settings or {})}
    check_settings(method, settings, run.experiment.model.hierarchy, num_samples)
    degradation = {"mask": mask, "scale": scale, "noise": noise}
    check_degradation(len(images), run.experiment.data, **degradation)
    seen = degrade(images, **degradation, seed=seed) if whole else images
    observed = observe(seen, run.experiment.data, **degradation)
    options = {"method": method, "num_samples": num_samples, "seed": seed}
    described = {**inputs.describe(seen, source), "mask_sha256": _sha256(mask)}
    described |= {"scale": scale, "noise": noise, **options, "settings": files.to_json(settings)}
    metadata = run.metadata(**described)
    arrays, grid = (paths.parse(out) / f"restored.{ending}" for ending in ("npz", "png"))
    outputs.check([arrays, grid], metadata, inputs=[source], overwrite=overwrite)
    best, samples = restore(run, seen, **degradation, **options, **settings)
    found = {"plain": baselines.first_guess(observed), "restored": best}
    known = grow(np.asarray(observed.values), scale)
    pictured = [*[images] * whole, known, *found.values(), *np.moveaxis(samples, 1, 0)[:SHOWN]]
    _draw(grid, pictured, metadata, run.num_bits)
    measured = _measure(found, images) if whole else {}
    pictures.save_arrays(arrays, images=best, samples=samples, **measured, **metadata)
    return _tell(measured, samples, grid)


def _sha256(mask):
    return "" if mask is None else inputs.describe(np.asarray(mask), "")["source_sha256"]


def _measure(found, originals):
    """{"psnr_NAME": (N,) dB} of {name: images}."""
    return {f"psnr_{name}": baselines.psnr(images, originals) for name, images in found.items()}


def _tell(measured, samples, path):
    """Prints mean PSNRs, and returns them by name."""
    means = {name.removeprefix("psnr_"): float(psnr.mean()) for name, psnr in measured.items()}
    described = "".join(f", {name} {mean:.2f} dB" for name, mean in means.items())
    print(f"{len(samples)} image(s), {samples.shape[1]} sample(s) of each{described}: {path}")
    return means


def _draw(path, columns, metadata, num_bits):
    """A row for each image, of one of each of the columns (N, H, W, C)."""
    images = np.stack([np.clip(images, 0, 1) for images in columns], 1).astype(np.float32)
    images = images.reshape(-1, *images.shape[2:])
    pictures.save_grid(path, images, metadata, len(columns), num_bits=num_bits)
