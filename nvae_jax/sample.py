"""Draws images from a trained model's prior and streams them to disk."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.typing import VariableDict
from numpy.typing import ArrayLike

from nvae_jax import (
    capacity,
    distributed,
    outputs,
    paths,
    pictures,
    progress,
    reporting,
    sharding,
    steps,
)
from nvae_jax.build import Experiment
from nvae_jax.data import depth
from nvae_jax.interrupt import interruptible
from nvae_jax.likelihoods import crop
from nvae_jax.noise import group_temperatures
from nvae_jax.ops import compiler
from nvae_jax.recalibrate import recalibrated_statistics
from nvae_jax.state import Snapshot

GRID = 100  # images of the grid, at most


def sample_images(
    experiment: Experiment,
    variables: VariableDict,
    *,
    num: int,
    temperature: ArrayLike = 1.0,
    seed: int = 0,
    batch_size: int = 100,
    draw_pixels: bool = False,
    decoder_temperature: float = 1.0,
    first: int = 0,
    rounded: bool = True,
) -> Iterator[np.ndarray]:
    """Yields `num` images from the prior in batches (B, H, W, C), without padding: uint8, or of
    models of more than 8 bits uint16 (`pictures.to_values`).

    Image i depends on the seed and on i, not on the batch size, `num` or the devices (but for the
    last bit of float32, which can round a pixel to the value beside it).

    Args:
      experiment: from `build.build`.
      variables: of the model.
      num: how many.
      temperature: of the prior, positive: one number, or one a scale, coarsest first.
      seed: of the images.
      batch_size: images drawn at a time, over all devices.
      draw_pixels: draw from the decoder's distribution instead of taking its mean.
      decoder_temperature: of that draw, positive.
      first: number of the first image, to go on where another call stopped.
      rounded: to integers; otherwise batches are float32 in [0, 1].

    Raises:
      ValueError: a number or temperature is not positive.
    """
    _check(num, batch_size, decoder_temperature)
    temperatures = group_temperatures(experiment.model.hierarchy, temperature)
    step = steps.make_sample_step(experiment.model, experiment.likelihood, draw_pixels=draw_pixels)
    step = jax.jit(
        sharding.gathered(step),
        compiler_options=compiler.options(jax.default_backend()),
    )
    key, variables = jax.random.key(seed), sharding.replicate(variables)
    batch_size = sharding.round_up(None, min(batch_size, num))

    def batches():
        for start in interruptible(range(first, first + num, batch_size)):
            indices = sharding.shard_batch(np.arange(start, start + batch_size))
            images = step(variables, key, indices, temperatures, decoder_temperature)
            uncut = crop(np.asarray(images), experiment.data.padding)
            batch = uncut[: first + num - start]
            yield pictures.to_values(batch, experiment.data.num_bits) if rounded else batch

    return batches()


def _check(num, batch_size, decoder_temperature):
    for name, value in (("num", num), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not 0 < decoder_temperature < float("inf"):
        raise ValueError(f"decoder_temperature must be positive, not {decoder_temperature}")


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
    temperature: ArrayLike = 1.0,
    recalibrate_bn: bool = True,
    recalibration: str = "pooled",
    passes: int | None = None,
    decoder: str | None = None,
    decoder_temperature: float = 1.0,
    batch_size: int | None = None,
    png_files: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Samples from a loaded run and writes the images to `out`.

    Args:
      workdir: the run directory.
      experiment: from `build.build`.
      state: a `state.Snapshot`, from `checkpoint.load_run`.
      out: a folder.
      num: how many images.
      temperature: of the prior: one number, or one a scale, coarsest first.
      recalibrate_bn: replace the running statistics of batch norm by those of prior samples.
      recalibration: how; one of `recalibrate.METHODS`.
      passes: of recalibration; None takes the config's.
      decoder: "mean" or "sample" of the pixels; None: the mean of binary images, otherwise a
        sample.
      decoder_temperature: of a sample of the pixels.
      batch_size: None takes the config's.
      png_files: write each image on its own, too.
      seed: of the images.
      overwrite: whether to replace files of other settings.

    Raises:
      ValueError: a number out of range, or the files may not be written; see `outputs.check`.
    """
    settings, variables = experiment.evaluation, state.variables
    batch_size = settings.batch_size if batch_size is None else batch_size
    temperatures = np.atleast_1d(temperature).tolist()
    _check(num, batch_size, decoder_temperature)
    group_temperatures(experiment.model.hierarchy, temperature)
    passes = settings.recalibration_passes if passes is None else passes
    decoder = decoder or ("mean" if experiment.data.binarize else "sample")
    metadata = {
        "model": describe_model(experiment),
        "step": state.step,
        "weights": state.fingerprint,
        "num": num,
        "temperature": temperatures[0] if len(temperatures) == 1 else temperatures,
        "seed": seed,
        "decoder": decoder,
        "decoder_temperature": decoder_temperature,
        "recalibration": recalibration if recalibrate_bn else "none",
        "recalibration_passes": passes if recalibrate_bn else 0,
        "recalibration_batch_size": settings.recalibration_batch_size if recalibrate_bn else 0,
    }
    shape = image_shape(experiment)
    written = [paths.parse(out) / "samples.npz", paths.parse(out) / "samples.png"]
    first = [paths.parse(out) / "images" / f"{0:06d}.png"] if png_files else []
    outputs.check(written + first, metadata, overwrite=overwrite)
    bits = experiment.data.num_bits
    with distributed.raise_together():
        capacity.check_memory(experiment, batch_size=min(batch_size, num))
        if distributed.is_primary():  # which writes
            size = math.prod(shape) * experiment.data.dtype().itemsize
            capacity.check_disk(out, num=(num, size))
    if recalibrate_bn:
        statistics = recalibrated_statistics(
            workdir,
            experiment,
            state,
            temperature=temperature,
            passes=passes,
            method=recalibration,
        )
        variables = {**variables, "batch_stats": statistics}
    batches = sample_images(
        experiment,
        variables,
        num=num,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        draw_pixels=decoder == "sample",
        decoder_temperature=decoder_temperature,
    )
    about = {"shape": shape, "num_bits": bits, "png_files": png_files, "metadata": metadata}
    write_images(batches, out, num=num, **about)
    distributed.barrier("samples written")
    reporting.log(f"{num} samples written to {written[0]} and {written[1]}")
