"""Interpolates between images in the prior's noise space.

In that space a latent z is represented by (z - prior mean) / prior scale given the coarser groups,
which is standard normal under the prior. Points on a great circle between two such vectors remain
typical of the prior; points on a straight line would come too close to its mean.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import inputs, outputs, paths, pictures, processes, progress, reporting
from nvae_jax.api import Run
from nvae_jax.noise import group_temperatures

MIN_ANGLE = 1e-4  # between closer directions the interpolation is linear


def slerp(start: np.ndarray, end: np.ndarray, fraction: float) -> np.ndarray:
    """Spherical interpolation between the rows of two arrays; norms are interpolated linearly.

    Args:
      start: (N, ...), one vector per row.
      end: (N, ...).
      fraction: 0 returns `start`, 1 returns `end`.
    """
    shape, rows = start.shape, len(start)
    start, end = start.reshape(rows, -1), end.reshape(rows, -1)
    lengths = [np.linalg.norm(a, axis=1, keepdims=True) + 1e-12 for a in (start, end)]
    a, b = start / lengths[0], end / lengths[1]
    angle = np.arccos(np.clip((a * b).sum(1, keepdims=True), -1.0, 1.0))
    close = angle < MIN_ANGLE
    sine = np.sin(np.where(close, 1.0, angle))
    weights = (
        np.where(close, 1 - fraction, np.sin((1 - fraction) * angle) / sine),
        np.where(close, fraction, np.sin(fraction * angle) / sine),
    )
    length = (1 - fraction) * lengths[0] + fraction * lengths[1]
    return ((weights[0] * a + weights[1] * b) * length).reshape(shape).astype(np.float32)


def interpolate(
    run: Run,
    start: Sequence[np.ndarray],
    end: Sequence[np.ndarray],
    num_steps: int,
    *,
    temperature: ArrayLike = 1.0,
) -> np.ndarray:
    """Decodes interpolations between two lists of noise, each group on its own great circle.

    Args:
      run: an `api.Run`.
      start: noise of the prior, a list with one (N, h, w, z) array per group.
      end: noise of the same shapes.
      num_steps: images of each interpolation, both ends included; at least 2.
      temperature: temperature of the prior.

    Returns:
      (N, num_steps, H, W, C) in [0, 1].

    Raises:
      ValueError: if `num_steps` is less than 2.
    """
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, not {num_steps}")
    steps = []
    for fraction in progress.bar("interpolating", np.linspace(0.0, 1.0, num_steps), unit="step"):
        noise = [slerp(a, b, fraction) for a, b in zip(start, end, strict=True)]
        steps.append(run.from_noise(noise, temperature=temperature))
    return np.stack(steps, axis=1)


def noise_of_image_pairs(
    run: Run, images: np.ndarray, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Computes the noise of the images 0, 2, 4, ... and of their partners 1, 3, 5, ...

    Raises:
      ValueError: if there are fewer than two images.
    """
    if len(images) < 2:
        raise ValueError("an interpolation needs at least two images")
    noise = run.standardize(run.encode(images, seed=seed))
    pairs = len(images) // 2
    return [n[0 : 2 * pairs : 2] for n in noise], [n[1 : 2 * pairs : 2] for n in noise]


def noise_of_sample_pairs(
    run: Run, num: int, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Draws the noise of two sets of `num` samples."""
    noise = run.draw_noise(2 * num, seed)
    return [n[0::2] for n in noise], [n[1::2] for n in noise]


def interpolate_run(
    run: Run,
    out: str | Path,
    *,
    images: np.ndarray | None = None,
    source: str = "images",
    num: int = 4,
    num_steps: int = 9,
    temperature: ArrayLike = 1.0,
    animation: str = "gif",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Writes interpolations between pairs of images, or between samples, to the folder `out`.

    The files are `interpolation.png` (one row per pair), `interpolation.npz` (key `images`: pairs,
    steps, H, W, C) and `interpolation.gif` or `.webp`, which shows all pairs side by side.

    Args:
      run: an `api.Run`; to interpolate between samples, recalibrate it first.
      out: output folder.
      images: (N, H, W, C) in [0, 1]; consecutive images form pairs. None interpolates between
        samples.
      source: the file or split that the images come from.
      num: number of pairs of samples.
      num_steps: images of each interpolation.
      temperature: temperature of the prior for samples; images are always decoded at 1.
      animation: "gif", "webp" or "none".
      seed: seed of the draws.
      overwrite: whether to replace files made with other settings.

    Raises:
      ValueError: as the functions above, or if the files must not be written (see
        `outputs.check`).
    """
    group_temperatures(run.experiment.model.hierarchy, temperature)  # checked in any case
    temperature = np.atleast_1d(temperature if images is None else 1.0).tolist()
    about = inputs.describe_source(images, source, num)
    metadata = run.metadata(**about, steps=num_steps, temperature=temperature, seed=seed)
    endings = ["npz", "png"] + ([] if animation == "none" else [animation])
    written = [paths.parse(out) / f"interpolation.{ending}" for ending in endings]
    outputs.check(written, metadata, inputs=[source], overwrite=overwrite)
    run.check_memory(about["num"] * num_steps)
    if images is None:
        ends = noise_of_sample_pairs(run, num, seed)
    else:
        ends = noise_of_image_pairs(run, images, seed)
    steps, bits = interpolate(run, *ends, num_steps, temperature=temperature), run.num_bits
    frames = [_frames(run, ends, temperature) for _ in written[2:]]

    def write():
        values, white = pictures.to_values(steps, bits), pictures.value_metadata(bits)
        pictures.save_arrays(written[0], images=values, **metadata, **white)
        flat = steps.reshape(-1, *steps.shape[2:])
        pictures.save_grid(written[1], flat, metadata, num_steps, num_bits=bits)
        for path, animated in zip(written[2:], frames, strict=True):
            pictures.save_animation(path, animated, metadata)

    processes.on_primary(write)
    reporting.log(
        f"{len(steps)} interpolation(s) in {out}: {', '.join(path.name for path in written)}"
    )


def _frames(run, ends, temperature, count=24):
    start, end = ends
    steps = interpolate(run, start, end, count, temperature=temperature)
    return np.stack(
        [pictures.image_grid(pictures.to_uint8(steps[:, i])) for i in range(steps.shape[1])]
    )
