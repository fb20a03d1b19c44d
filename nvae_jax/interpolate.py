"""Ways between two images through the noise of the prior.

There a latent is (z - prior mean) / prior scale given the groups above: noise that the prior itself
would draw. Between two of them a great circle stays where the prior puts its mass; a straight line
would cross its empty middle.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import distributed, inputs, outputs, paths, pictures, progress, reporting
from nvae_jax.api import Run
from nvae_jax.noise import group_temperatures

MIN_ANGLE = 1e-4  # closer directions than this are as good as on a straight line


def slerp(start: np.ndarray, end: np.ndarray, fraction: float) -> np.ndarray:
    """A point on the great circle between two arrays; their lengths are interpolated linearly.

    Args:
      start: (N, ...), each row a vector.
      end: the same.
      fraction: 0 gives `start`, 1 gives `end`.
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
    """Images on the way between two sets of noise, each group on its own great circle.

    Args:
      run: an `api.Run`.
      start: a list of (N, h, w, z), one a group.
      end: the same.
      num_steps: images of a way, its ends included; at least 2.
      temperature: of the prior.

    Returns:
      (N, num_steps, H, W, C) in [0, 1].
    """
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, not {num_steps}")
    ways = []
    for fraction in progress.bar("interpolating", np.linspace(0.0, 1.0, num_steps), unit="step"):
        noise = [slerp(a, b, fraction) for a, b in zip(start, end, strict=True)]
        ways.append(run.from_noise(noise, temperature=temperature))
    return np.stack(ways, axis=1)


def noise_of_image_pairs(
    run: Run, images: np.ndarray, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The noise of images 0, 2, 4 ... and that of 1, 3, 5 ...

    Raises:
      ValueError: there are fewer than two images.
    """
    if len(images) < 2:
        raise ValueError("an interpolation needs at least two images")
    noise = run.standardize(run.encode(images, seed=seed))
    pairs = len(images) // 2
    return [n[0 : 2 * pairs : 2] for n in noise], [n[1 : 2 * pairs : 2] for n in noise]


def noise_of_sample_pairs(
    run: Run, num: int, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The noise of two sets of `num` samples."""
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
    """Writes `interpolation.png` (a row a pair), `interpolation.npz` (key `images`: pairs, steps,
    H, W, C) and `interpolation.gif` or `.webp`, in which all pairs move at once.

    Args:
      run: an `api.Run`, recalibrated where samples are wanted.
      out: a folder.
      images: (N, H, W, C) in [0, 1], taken in pairs; None interpolates between samples, which are
        drawn at the temperature; images lie at 1.
      source: the file or split that the images come from.
      num: pairs of samples.
      num_steps: images of a way.
      temperature: of the prior, for samples.
      animation: "gif", "webp" or "none".
      seed: of the draws.
      overwrite: whether to replace files of other settings.

    Raises:
      ValueError: as the functions above, or the files may not be written; see `outputs.check`.
    """
    group_temperatures(run.experiment.model.hierarchy, temperature)  # for images too: checked
    temperature = np.atleast_1d(temperature if images is None else 1.0).tolist()
    about = inputs.describe_source(images, source, num)
    metadata = run.metadata(**about, steps=num_steps, temperature=temperature, seed=seed)
    endings = ["npz", "png"] + ([] if animation == "none" else [animation])
    written = [paths.parse(out) / f"interpolation.{ending}" for ending in endings]
    outputs.check(written, metadata, inputs=[source], overwrite=overwrite)
    run.check_room(about["num"] * num_steps)
    if images is None:
        ends = noise_of_sample_pairs(run, num, seed)
    else:
        ends = noise_of_image_pairs(run, images, seed)
    ways, bits = interpolate(run, *ends, num_steps, temperature=temperature), run.num_bits
    frames = [_frames(run, ends, temperature) for _ in written[2:]]

    def write():
        values, about = pictures.to_values(ways, bits), pictures.value_metadata(bits)
        pictures.save_arrays(written[0], images=values, **metadata, **about)
        flat = ways.reshape(-1, *ways.shape[2:])
        pictures.save_grid(written[1], flat, metadata, num_steps, num_bits=bits)
        for path, animated in zip(written[2:], frames, strict=True):
            pictures.save_animation(path, animated, metadata)

    distributed.on_primary(write)
    reporting.log(
        f"{len(ways)} interpolation(s) in {out}: {', '.join(path.name for path in written)}"
    )


def _frames(run, ends, temperature, count=24):
    start, end = ends
    ways = interpolate(run, start, end, count, temperature=temperature)
    return np.stack(
        [pictures.image_grid(pictures.to_uint8(ways[:, i])) for i in range(ways.shape[1])]
    )
