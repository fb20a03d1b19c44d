"""Restores images for the command `restore`, and writes the results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import checks, files, inputs, outputs, paths, pictures
from nvae_jax.api import Run
from nvae_jax.restoration import baselines
from nvae_jax.restoration.degradation import check_degradation, degrade, observe
from nvae_jax.restoration.restore import METHODS, check_settings, default_method, given, restore
from nvae_jax.restoration.smooth import grow

SHOWN = 4  # samples per image in the picture


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
    """Restores images and writes `restored.npz` and `restored.png`.

    The picture has a row for each image: the original if it is given, the known part, the plain
    restoration, the best one and some of the samples.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1].
      out: a folder.
      source: the file or split that the images come from.
      whole: whether the images are originals, which are degraded first, and with which the results
        are compared.
      mask: see `restore`, also for the arguments up to `num_samples`.
      scale: see `restore`.
      noise: see `restore`.
      method: see `restore`.
      num_samples: see `restore`.
      settings: settings of the method.
      seed: seed of all draws.
      overwrite: whether to replace files made with other settings.

    Returns:
      {name: mean PSNR in dB}, which is also printed; {} without originals.

    Raises:
      ValueError: as `restore`, or if the files must not be written; see `outputs.check`.
    """
    method = method or default_method(noise)
    settings = {**METHODS.get(method, {}), **given(settings or {})}
    check_settings(method, settings, run.experiment.model.hierarchy, num_samples)
    degradation = {"mask": mask, "scale": scale, "noise": noise}
    seen, observed = _observe(images, run.experiment.data, degradation, whole, source, seed)
    options = {"method": method, "num_samples": num_samples, "seed": seed}
    metadata = _metadata(run, seen, source, degradation, settings, options)
    arrays, grid = (paths.parse(out) / f"restored.{ending}" for ending in ("npz", "png"))
    outputs.check([arrays, grid], metadata, inputs=[source], overwrite=overwrite)
    best, samples = restore(run, seen, **degradation, **options, **settings)
    results = {"plain": baselines.first_guess(observed), "restored": best}
    _draw(grid, [images] if whole else [], observed, results, samples, metadata, run.num_bits)
    psnr = _psnr(results, images) if whole else {}
    pictures.save_arrays(arrays, images=best, samples=samples, **psnr, **metadata)
    return _print_means(psnr, samples, grid)


def _observe(images, spec, degradation, whole, source, seed):
    """The images, degraded if they are whole, and what is known of them."""
    check_degradation(len(images), spec, **degradation)
    seen = degrade(images, **degradation, seed=seed) if whole else images
    with checks.naming(source):
        return seen, observe(seen, spec, **degradation)


def _metadata(run, images, source, degradation, settings, options):
    mask = degradation["mask"]
    return run.metadata(
        **inputs.describe(images, source),
        mask_sha256="" if mask is None else inputs.describe(np.asarray(mask), "")["source_sha256"],
        scale=degradation["scale"],
        noise=degradation["noise"],
        **options,
        settings=files.to_json(settings),
    )


def _psnr(results, originals):
    """{"psnr_NAME": (N,) dB} of {name: images}."""
    return {f"psnr_{name}": baselines.psnr(images, originals) for name, images in results.items()}


def _print_means(measured, samples, path):
    """Prints the mean PSNRs, and returns them by name."""
    means = {name.removeprefix("psnr_"): float(psnr.mean()) for name, psnr in measured.items()}
    described = "".join(f", {name} {mean:.2f} dB" for name, mean in means.items())
    print(f"{len(samples)} image(s), {samples.shape[1]} sample(s) of each{described}: {path}")
    return means


def _draw(path, originals, observed, results, samples, metadata, num_bits):
    """Writes a grid with a row for each image."""
    known = grow(np.asarray(observed.values), observed.scale)
    columns = [*originals, known, *results.values(), *np.moveaxis(samples, 1, 0)[:SHOWN]]
    images = np.stack([np.clip(images, 0, 1) for images in columns], 1).astype(np.float32)
    images = images.reshape(-1, *images.shape[2:])
    pictures.save_grid(path, images, metadata, len(columns), num_bits=num_bits)
