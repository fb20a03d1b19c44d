"""Draws samples from a trained model and writes them to files."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvae_jax import capacity, outputs, paths, pictures, processes, progress, reporting
from nvae_jax.data import depth
from nvae_jax.experiment import Experiment
from nvae_jax.prior_samples import PriorSamples
from nvae_jax.state import Snapshot

GRID = 100  # largest number of images in the grid


def write_images(
    batches: Iterable[np.ndarray],
    out: str | Path,
    *,
    num: int,
    shape: Sequence[int],
    num_bits: int = 8,
    png_files: bool = False,
    metadata: Mapping[str, Any],
) -> None:
    """Writes batches of images as they are computed; only the grid's images stay in memory.

    Writes to the folder `out`: `samples.npz` (key `images`, and the metadata by name),
    `samples.png` (a grid of the first 100 images), and with `png_files` also `images/NNNNNN.png`.
    In a cluster only the first process writes.

    Args:
      batches: batches (B, H, W, C) of integers as `pictures.to_values` returns them.
      out: output folder.
      num: number of images in all batches together.
      shape: (H, W, C) of one image.
      num_bits: number of bits of a value.
      png_files: whether to write each image to a file of its own.
      metadata: {name: value}, stored in every file.
    """
    if not processes.is_primary():
        for _ in batches:  # all processes compute them together
            pass
        return
    out, first, done = paths.parse(out), [], 0
    dtype, white = pictures.to_values(0.0, num_bits).dtype, pictures.value_metadata(num_bits)
    stream = pictures.ArrayStream(
        out / "samples.npz", "images", (num, *shape), dtype, **metadata, **white
    )
    with stream, progress.bar("sampling", unit="image", total=num) as bar:
        for batch in batches:
            stream.write(batch)
            batch = depth.scale(batch, 2 ** max(num_bits, 8) - 1, num_bits)
            if done < GRID:
                first.append(batch[: GRID - done])
            for number, image in enumerate(batch if png_files else (), done):
                pictures.save_png(out / "images" / f"{number:06d}.png", image, metadata)
            done += len(batch)
            bar.update(len(batch))
    pictures.save_grid(out / "samples.png", np.concatenate(first), metadata)


def sample_run(
    workdir: str | Path,
    experiment: Experiment,
    state: Snapshot,
    *,
    out: str | Path,
    num: int,
    decoder: str | None = None,
    png_files: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Samples from a loaded run and writes the images to the folder `out`; see `write_images`.

    Args:
      workdir: the run directory.
      experiment: an `Experiment`.
      state: a `state.Snapshot`, from `loading.load_run`.
      out: output folder.
      num: number of images.
      decoder: "mean" for the mean of the pixels' distribution, "sample" for a draw from it; None
        uses the mean for binary images and a draw for others.
      png_files: whether to write each image to a file of its own, too.
      overwrite: whether to replace files made with other settings.
      **options: settings of `PriorSamples`.

    Raises:
      ValueError: if a number is out of range, or the files must not be written (see
        `outputs.check`).
    """
    decoder = decoder or ("mean" if experiment.data.binarize else "sample")
    samples, out = PriorSamples(num, decoder=decoder, **options), paths.parse(out)
    samples.check(experiment)
    metadata = {**experiment.metadata(state), **samples.metadata(experiment)}
    written = [out / "samples.npz", out / "samples.png"]
    first = [out / "images" / f"{0:06d}.png"] if png_files else []
    outputs.check(written + first, metadata, overwrite=overwrite)
    shape = experiment.data.unpadded_shape
    with processes.raise_together():
        at_a_time = min(samples.images_at_a_time(experiment), num)
        capacity.check_memory(experiment, batch_size=at_a_time)
        if processes.is_primary():  # the only process that writes
            size = math.prod(shape) * experiment.data.dtype().itemsize
            capacity.check_disk(out, num=(num, size))
    write_images(
        samples.batches(workdir, experiment, state),
        out,
        num=num,
        shape=shape,
        num_bits=experiment.data.num_bits,
        png_files=png_files,
        metadata=metadata,
    )
    processes.barrier("samples written")
    reporting.log(f"{num} samples written to {written[0]} and {written[1]}")
