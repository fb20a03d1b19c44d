"""Images from outside, checked and brought to what the model was trained on."""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from nvae_jax.data import pipeline, transforms
from nvae_jax.likelihoods import crop
from nvae_jax.pictures import to_uint8

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def to_model(images, spec, seed=0):
    """Images as a person has them, as the model takes them.

    What training did to the images of its data set is done to these: binarised at random, reduced
    to fewer bits, padded.

    Args:
      images: (N, h, w, C), float in [0, 1] or uint8, without padding.
      spec: the run's `DataSpec`.
      seed: of the binarisation, where there is one.

    Returns:
      (N, H, W, C) float32 in [0, 1].

    Raises:
      ValueError: another shape, or values outside [0, 1].
    """
    prepared = []
    for i, image in enumerate(check(images, spec)):
        rng = transforms.example_rng(seed, transforms.EVAL_STREAM, 0, i)
        prepared.append(transforms.to_model(image, spec, rng, train=False))
    return np.stack(prepared)


def check(images, spec):
    """Images without padding as uint8, of the run's shape. Raises ValueError as `to_model`."""
    return _in_range(_shaped(np.asarray(images), spec))


def _shaped(images, spec):
    size = spec.image_size - 2 * spec.padding
    wanted = (size, size, spec.channels)
    if images.ndim != 4 or images.shape[1:] != wanted or not len(images):
        expected = ", ".join(map(str, wanted))
        raise ValueError(f"images must be of shape (N, {expected}), not {images.shape}")
    return images


def _in_range(images):
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be float in [0, 1] or uint8, not {images.dtype}")
    if not np.isfinite(images).all():
        raise ValueError("images must be in [0, 1], but some values are not finite")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        hint = ": divide by 255" if low >= 0 and 1 < high <= 255 else ""
        raise ValueError(f"images must be in [0, 1], not [{low:g}, {high:g}]{hint}")
    return to_uint8(images)


def load(path):
    """Images from a file.

    Args:
      path: `.npz` with the key `images`, or `.npy`: (N, H, W, C) uint8 or float in [0, 1]; or a
        picture, which is one image.

    Returns:
      (N, H, W, C) as stored.

    Raises:
      ValueError: no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix in PICTURES:
        return _load_picture(path)
    arrays = load_arrays(path)
    if "images" not in arrays:
        raise ValueError(f"{path} has no array `images`, only {', '.join(sorted(arrays))}")
    return arrays["images"]


def load_arrays(path):
    """All arrays of an `.npz` file by name; that of an `.npy` file as `images`.

    Raises:
      ValueError: no such file, or it cannot be read.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # a damaged archive can fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as .npz or .npy: {reason}") from None


def _load_picture(path):
    try:
        with Image.open(path) as picture:
            array = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from None
    return (array if array.ndim == 3 else array[..., None])[None]


def select(experiment, *, images=None, split="test", num=8, first=0, seed=0):
    """Images for a command, without padding: those of a file, or some of the data set.

    They are binarised and reduced to the data set's bits as the model wants them: doing so again
    changes nothing.

    Args:
      experiment: from `build.build`.
      images: a file for `load`; None takes the data set's.
      split: of the data set.
      num: how many, at most; None takes all.
      first: number of the first.
      seed: of the binarisation.

    Returns:
      (N, h, w, C) float32 in [0, 1].

    Raises:
      ValueError: as `to_model` and `load`, or there are no such images.
    """
    end = None if num is None else first + num
    if images is not None:
        chosen = to_model(load(images), experiment.data, seed)[first:end]
    else:
        split = pipeline.resolve_split(experiment.data, split)
        size = pipeline.num_examples(experiment.data, split)
        end = min(end or size, size)
        batches = pipeline.eval_batches(
            experiment.data, split=split, batch_size=256, seed=seed, max_examples=max(end, 1)
        )
        chosen = np.concatenate([batch["image"][batch["mask"]] for batch in batches])[first:]
    if not len(chosen):
        raise ValueError(f"there is no image number {first}")
    return crop(chosen, experiment.data.padding)


def starts(run, *, samples, temperature=None, **choice):
    """What a command starts from: images, or samples of the run.

    Args:
      run: an `api.Run`.
      samples: whether samples are wanted.
      temperature: that the run is to be recalibrated at for samples; None leaves it alone.
      **choice: of `select`.

    Returns:
      the run, recalibrated where asked for, and images, or None where samples are wanted.
    """
    if not samples:
        return run, select(run.experiment, **choice)
    return run if temperature is None else run.recalibrated(temperature), None
