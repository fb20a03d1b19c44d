"""Restores images for the command `restore`, and writes what came out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import files, inputs, outputs, pictures
from nvae_jax.api import Run
from nvae_jax.restoration import baselines
from nvae_jax.restoration.observed import grow, shrink
from nvae_jax.restoration.restore import METHODS, check_settings, given, observe, restore

SHOWN = 4  # samples of each image in the picture


def degrade(
    images: np.ndarray,
    *,
    mask: ArrayLike | None = None,
    scale: int = 1,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """What `restore` would be given of whole images (N, H, W, C): their means over blocks of
    `scale` pixels each way, plus noise, and 0 where `mask` says that nothing is known. Raises
    ValueError where `scale` does not divide the size."""
    if scale < 1 or images.shape[1] % scale:
        raise ValueError(f"scale must divide {images.shape[1]}, not {scale}")
    small = shrink(images, scale)
    noisy = small + noise * np.random.default_rng(seed).standard_normal(small.shape)
    known = 1 if mask is None else np.asarray(mask, bool)[..., None]
    return (noisy * known).astype(np.float32)


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
    method: str = "optimize",
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
    settings = {**METHODS.get(method, {}), **given(settings or {})}
    check_settings(method, settings, run.experiment.model.hierarchy, num_samples)
    degradation = {"mask": mask, "scale": scale, "noise": noise}
    seen = degrade(images, **degradation, seed=seed) if whole else images
    observed = observe(seen, run.experiment.data, **degradation)
    metadata = run.metadata(
        **inputs.describe(seen, source),
        mask_sha256="" if mask is None else inputs.describe(np.asarray(mask), "")["source_sha256"],
        scale=scale,
        noise=noise,
        method=method,
        num_samples=num_samples,
        settings=files.to_json(settings),
        seed=seed,
    )
    arrays, grid = Path(out) / "restored.npz", Path(out) / "restored.png"
    outputs.check([arrays, grid], metadata, inputs=[source], overwrite=overwrite)
    best, samples = restore(
        run, seen, **degradation, method=method, num_samples=num_samples, seed=seed, **settings
    )
    found = {"plain": baselines.first_guess(observed), "restored": best}
    measured = {name: baselines.psnr(x, images) for name, x in found.items()} if whole else {}
    rows = [
        grow(np.asarray(observed.values), scale),
        *found.values(),
        *np.moveaxis(samples, 1, 0)[:SHOWN],
    ]
    _draw(grid, [images, *rows] if whole else rows, metadata, run.num_bits)
    measured_arrays = {f"psnr_{name}": values for name, values in measured.items()}
    pictures.save_arrays(arrays, images=best, samples=samples, **measured_arrays, **metadata)
    means = {name: float(values.mean()) for name, values in measured.items()}
    described = "".join(f", {name} {mean:.2f} dB" for name, mean in means.items())
    print(f"{len(samples)} image(s), {num_samples} sample(s) of each{described}: {grid}")
    return means


def _draw(path, rows, metadata, num_bits):
    """Columns of images (N, H, W, C), a row for each image."""
    columns = len(rows)
    images = np.stack([np.clip(images, 0, 1) for images in rows], 1)
    images = images.reshape(-1, *images.shape[2:]).astype(np.float32)
    pictures.save_grid(path, images, metadata, columns, num_bits=num_bits)
