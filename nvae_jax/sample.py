"""Draws images from a trained model's prior and writes them."""

from pathlib import Path

import jax
import numpy as np

from nvae_jax import reporting, steps
from nvae_jax.likelihoods import crop
from nvae_jax.recalibrate import recalibrate


def sample_images(experiment, variables, *, num, temperature, seed, batch_size, draw_pixels):
    """`num` uint8 images (num, H, W, C) from the prior, without padding.

    Args:
      experiment: from `build.build`.
      variables: of the model.
      num: how many.
      temperature: of the prior, positive.
      seed: image i depends on it and on `batch_size` alone, not on `num`.
      batch_size: images drawn at a time.
      draw_pixels: draw from the decoder's distribution instead of taking its mean.

    Raises:
      ValueError: `num` or `temperature` is not positive.
    """
    _check(num, temperature)
    step = jax.jit(
        steps.make_sample_step(
            experiment.model, experiment.likelihood, batch_size, draw_pixels=draw_pixels
        )
    )
    key, batches = jax.random.key(seed), []
    for index in range(-(-num // batch_size)):
        images = step(variables, jax.random.fold_in(key, index), temperature)
        batches.append(reporting.to_uint8(crop(np.asarray(images), experiment.data.padding)))
    return np.concatenate(batches)[:num]


def _check(num, temperature):
    if num < 1:
        raise ValueError(f"num must be at least 1, not {num}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive, not {temperature}")


def write_images(images, out, **metadata):
    """Writes `samples.npz` (all, key `images`, and the metadata) and `samples.png` (a grid of at
    most 100) to the folder `out`."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "samples.npz", images=images, **metadata)
    reporting.save_png(out / "samples.png", reporting.image_grid(images[:100]))


def sample_run(
    experiment,
    state,
    *,
    out,
    num,
    temperature,
    recalibrate_bn=True,
    passes=None,
    decoder=None,
    batch_size=None,
    seed=0,
):
    """Samples from a loaded run and writes the images to `out`.

    Args:
      experiment: from `build.build`.
      state: the restored training state.
      out: a folder.
      num: how many images.
      temperature: of the prior.
      recalibrate_bn: replace the running statistics of batch norm by those of prior samples.
      passes: of recalibration; None takes the config's.
      decoder: "mean" or "sample" of the pixels; None: the mean of binary images, otherwise a
        sample.
      batch_size: None takes the config's.
      seed: of the images.
    """
    variables, settings = state.variables, experiment.evaluation
    passes = passes or settings.recalibration_passes
    _check(num, temperature)
    if recalibrate_bn:
        print(f"recalibrating batch norm over {passes} passes ...", flush=True)
        variables["batch_stats"] = recalibrate(
            experiment.model,
            variables,
            jax.random.key(experiment.seed),
            temperature=temperature,
            passes=passes,
            batch_size=settings.recalibration_batch_size,
        )
    decoder = decoder or ("mean" if experiment.data.binarize else "sample")
    images = sample_images(
        experiment,
        variables,
        num=num,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size or settings.batch_size,
        draw_pixels=decoder == "sample",
    )
    write_images(
        images,
        out,
        step=int(state.step),
        temperature=temperature,
        seed=seed,
        decoder=decoder,
        recalibration_passes=passes if recalibrate_bn else 0,
    )
    print(f"{num} samples written to {Path(out) / 'samples.npz'} and {Path(out) / 'samples.png'}")
