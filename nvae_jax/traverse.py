"""Latent traversals: varies one latent group while the others stay fixed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import inputs, outputs, paths, pictures, processes, progress, reporting
from nvae_jax.api import Run
from nvae_jax.models.latents import GIVEN, PRIOR
from nvae_jax.noise import group_temperatures

OTHERS = ("noise", "latents")


def check_group(run: Run, group: int, channel: int | None = None) -> None:
    """Raises ValueError unless the run has this group, and the group has this channel."""
    if not 0 <= group < run.num_groups:
        raise ValueError(f"group must be from 0 (coarsest) to {run.num_groups - 1}, not {group}")
    channels = run.latent_shapes[group][-1]
    if channel is not None and not 0 <= channel < channels:
        raise ValueError(f"channel must be from 0 to {channels - 1}, not {channel}")


def traverse(
    run: Run,
    noise: Sequence[np.ndarray],
    group: int,
    num_steps: int,
    *,
    channel: int | None = None,
    span: float = 3.0,
    others: str = "noise",
    temperature: ArrayLike = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Decodes images while the noise of one group varies.

    Args:
      run: an `api.Run`.
      noise: noise of the prior to start from, a list with one (N, h, w, z) array per group.
      group: number of the group to vary; 0 is the coarsest.
      num_steps: number of variations.
      channel: number of a channel that moves at all pixels from -span to span prior standard
        deviations; None draws the whole group anew in each step, with the same draws for all N.
      span: range of the movement of a channel.
      others: what stays fixed of the finer groups: "noise", so that their latents follow the prior
        given the new group; or "latents".
      temperature: temperature of the prior.
      seed: seed of the draws.

    Returns:
      (N, num_steps, H, W, C) in [0, 1].

    Raises:
      ValueError: if there is no such group or channel, or less than one step.
    """
    check_group(run, group, channel)
    if num_steps < 1 or not 0 < span < np.inf:
        raise ValueError(f"num_steps and span must be positive, not {num_steps} and {span}")
    temperatures = group_temperatures(run.experiment.model.hierarchy, temperature)
    sources, fixed = np.full(run.num_groups, PRIOR), list(noise)
    if others == "latents":
        _, fixed, _ = run.compose(sources, temperatures, latents=noise)
        sources = np.where(np.arange(run.num_groups) == group, PRIOR, GIVEN)
    variations = []
    steps = _variations(noise[group], num_steps, channel, span, seed)
    for varied in progress.bar("traversing", steps, unit="step"):
        latents = [*fixed[:group], varied, *fixed[group + 1 :]]
        variations.append(run.compose(sources, temperatures, latents=latents)[0])
    return np.stack(variations, axis=1)


def _variations(noise, num_steps, channel, span, seed):
    """Returns the group's noise (N, h, w, z) at each step."""
    if channel is None:
        draws = np.random.default_rng(seed).normal(size=(num_steps, 1, *noise.shape[1:]))
        return [np.broadcast_to(draw, noise.shape).astype(np.float32) for draw in draws]
    moved = []
    for value in np.linspace(-span, span, num_steps, dtype=np.float32):
        step = noise.copy()
        step[..., channel] = value
        moved.append(step)
    return moved


def traverse_run(
    run: Run,
    out: str | Path,
    *,
    images: np.ndarray | None = None,
    source: str = "images",
    num: int = 6,
    group: int,
    num_steps: int = 9,
    channel: int | None = None,
    span: float = 3.0,
    others: str = "noise",
    temperature: ArrayLike = 1.0,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Varies one group of images or samples, and writes `traversal_GG.png` and `traversal_GG.npz`
    to the folder `out`. Each row has a start image followed by its variations.

    Args:
      run: an `api.Run`; to start from samples, recalibrate it first.
      out: output folder.
      images: (N, H, W, C) in [0, 1] to start from; None starts from samples.
      source: the file or split that the images come from.
      num: number of samples.
      group: number of the group to vary; 0 is the coarsest.
      num_steps: number of variations.
      channel: as in `traverse`.
      span: as in `traverse`.
      others: as in `traverse`.
      temperature: temperature of the prior for samples; images are always decoded at 1.
      seed: seed of all draws.
      overwrite: whether to replace files made with other settings.

    Raises:
      ValueError: as `traverse`, or if the files must not be written (see `outputs.check`).
    """
    check_group(run, group, channel)
    group_temperatures(run.experiment.model.hierarchy, temperature)  # checked in any case
    temperature = np.atleast_1d(temperature if images is None else 1.0).tolist()
    options = {"span": span, "others": others, "temperature": temperature}
    start = inputs.describe_source(images, source, num)
    metadata = run.metadata(
        **start,
        group=group,
        channel="all" if channel is None else channel,
        steps=num_steps,
        seed=seed,
        **options,
    )
    written = [paths.parse(out) / f"traversal_{group:02d}.{ending}" for ending in ("npz", "png")]
    outputs.check(written, metadata, inputs=[source], overwrite=overwrite)
    run.check_memory(start["num"] * num_steps)
    if images is None:
        noise = run.draw_noise(num, seed)
    else:
        noise = run.standardize(run.encode(images, seed=seed))
    starts = run.from_noise(noise, temperature=temperature)
    varied = traverse(run, noise, group, num_steps, channel=channel, seed=seed + 1, **options)
    rows = np.concatenate([starts[:, None], varied], axis=1)
    arrays, grid = written
    processes.on_primary(lambda: _write(arrays, grid, rows, run.num_bits, metadata))
    reporting.log(f"{num_steps} variations of group {group}: {grid}, {arrays}")


def _write(arrays, grid, rows, bits, metadata):
    """Writes images (N, columns, H, W, C) in [0, 1] to the paths `arrays` and `grid`."""
    values, white = pictures.to_values(rows, bits), pictures.value_metadata(bits)
    pictures.save_arrays(arrays, images=values, **metadata, **white)
    flat = rows.reshape(-1, *rows.shape[2:])
    pictures.save_grid(grid, flat, metadata, rows.shape[1], num_bits=bits)
