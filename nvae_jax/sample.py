"""Draws images from a trained model's prior and streams them to disk."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvae_jax import capacity, distributed, outputs, paths, pictures, progress, reporting
from nvae_jax.build import Experiment
from nvae_jax.data import depth
from nvae_jax.prior_samples import PriorSamples
from nvae_jax.state import Snapshot

GRID = 100  # images of the grid, at most


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
    """Streams batches of `pictures.to_values` to `out`; only the grid's images stay in memory. Of
    the processes of a cluster, the first one writes.

    Args:
      batches: of (B, H, W, C), `num` images in all.
      out: gets `samples.npz` (key `images`, and the metadata by name), `samples.png` (a grid of the
        first 100), and with `png_files` also `images/NNNNNN.png`.
      num: how many images.
      shape: (H, W, C) of one.
      num_bits: of a value.
      png_files: whether to write each image on its own.
      metadata: {name: value}, which every file says.
    """
    if not distributed.is_primary():
        for _ in batches:  # which all processes compute together
            pass
        return
    out, first, done = paths.parse(out), [], 0
    dtype, about = pictures.to_values(0.0, num_bits).dtype, pictures.value_metadata(num_bits)
    stream = pictures.ArrayStream(
        out / "samples.npz", "images", (num, *shape), dtype, **metadata, **about
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


def image_shape(experiment: Experiment) -> tuple[int, int, int]:
    """(H, W, C) of one image, without padding."""
    height, width, channels = experiment.image_shape
    padding = experiment.data.padding
    return height - 2 * padding, width - 2 * padding, channels


def describe_model(experiment: Experiment) -> str:
    """One line about a model, for metadata."""
    hierarchy, shape = experiment.model.hierarchy, "x".join(map(str, experiment.image_shape))
    return (
        f"NVAE of {experiment.data.name} {shape}: {sum(hierarchy.groups)} groups on "
        f"{hierarchy.num_scales} scale(s), widths {experiment.model.encoder_width} and "
        f"{experiment.model.decoder_width}"
    )


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
    """Samples from a loaded run and writes the images to `out`.

    Args:
      workdir: the run directory.
      experiment: from `build.build`.
      state: a `state.Snapshot`, from `checkpoint.load_run`.
      out: a folder.
      num: how many images.
      decoder: "mean" or "sample" of the pixels; None: the mean of binary images, otherwise a
        sample.
      png_files: write each image on its own, too.
      overwrite: whether to replace files of other settings.
      **options: of `PriorSamples`.

    Raises:
      ValueError: a number out of range, or the files may not be written; see `outputs.check`.
    """
    decoder = decoder or ("mean" if experiment.data.binarize else "sample")
    samples, out = PriorSamples(num, decoder=decoder, **options), paths.parse(out)
    samples.check(experiment)
    metadata = {
        "model": describe_model(experiment),
        "step": state.step,
        "weights": state.fingerprint,
        **samples.metadata(experiment),
    }
    written = [out / "samples.npz", out / "samples.png"]
    first = [out / "images" / f"{0:06d}.png"] if png_files else []
    outputs.check(written + first, metadata, overwrite=overwrite)
    shape = image_shape(experiment)
    with distributed.raise_together():
        at_a_time = min(samples.images_at_a_time(experiment), num)
        capacity.check_memory(experiment, batch_size=at_a_time)
        if distributed.is_primary():  # which writes
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
    distributed.barrier("samples written")
    reporting.log(f"{num} samples written to {written[0]} and {written[1]}")
