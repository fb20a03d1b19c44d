"""Reads a user's images, checks them and converts them to what the model was trained on."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import checks, mirror, paths, processes
from nvae_jax.data import depth, faults, folder, numpy_files, pipeline, splits, transforms
from nvae_jax.data.images import SUFFIXES, Images
from nvae_jax.data.spec import CorruptError, DataSpec
from nvae_jax.experiment import Experiment
from nvae_jax.likelihoods import crop
from nvae_jax.pictures import to_range

if TYPE_CHECKING:  # api imports this module
    from nvae_jax.api import Run

ARRAYS = (".npz", ".npy")


def to_model(images: ArrayLike, spec: DataSpec, seed: int = 0, first: int = 0) -> np.ndarray:
    """Prepares images without padding for the model.

    They are processed like the training data: reduced to the data set's number of bits, binarised
    at random if the data set is, and padded.

    Args:
      images: (N, h, w, C), without padding: float in [0, 1] or uint8. For a model of more than 8
        bits: float in [0, 1], or uint16 with values of that number of bits.
      spec: the run's `DataSpec`.
      seed: seed of the binarisation.
      first: number of the first image, which its random binarisation depends on.

    Returns:
      (N, H, W, C) float32 in [0, 1].

    Raises:
      ValueError: if the shape is wrong, or values are outside [0, 1].
    """
    prepared = []
    for i, image in enumerate(check(images, spec), first):
        rng = transforms.example_rng(seed, transforms.EVAL_STREAM, 0, i)
        prepared.append(transforms.to_model(image, spec, rng, train=False))
    return np.stack(prepared)


def check(images: ArrayLike, spec: DataSpec) -> np.ndarray:
    """Checks images without padding and converts them to integers over the full range of their
    dtype (uint8, or uint16 for models of more than 8 bits).

    Raises:
      ValueError: if the shape is wrong, or values are outside [0, 1].
    """
    images = np.asarray(images)
    _check_shape(images, spec)
    return _in_range(images, spec)


def check_shape(images: Images | np.ndarray, spec: DataSpec, source: str | Path) -> None:
    """Raises ValueError, naming the `source`, unless there is at least one image and all have the
    run's shape without padding."""
    with checks.naming(source):
        _check_shape(images, spec)


def _check_shape(images, spec):
    checks.array("images", images, ("N", *spec.unpadded_shape))
    if not images.shape[0]:
        raise ValueError(f"there must be at least one image, not an array of shape {images.shape}")


def _in_range(images, spec):
    if images.dtype == np.uint8 == spec.dtype:
        return images
    if images.dtype == np.uint16 == spec.dtype:
        white = 2**spec.num_bits - 1
        if (high := images.max()) > white:
            raise ValueError(
                f"uint16 images for this model must be from 0 to {white}, but some reach {high}"
            )
        return depth.scale(images, white, spec.num_bits)
    if not np.issubdtype(images.dtype, np.floating):
        wanted = np.dtype(spec.dtype).name
        raise ValueError(f"images must be float in [0, 1] or {wanted}, not {images.dtype}")
    if not np.isfinite(images).all():
        raise ValueError("images must be in [0, 1], but some values are not finite")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        white = 2 ** max(spec.num_bits, 8) - 1
        hint = f": divide by {white}" if low >= 0 and 1 < high <= white else ""
        raise ValueError(f"images must be in [0, 1], not [{low:g}, {high:g}]{hint}")
    return to_range(images, spec.num_bits)


def load(path: str | Path, spec: DataSpec | None = None) -> Images:
    """Opens images in an array file, an image file or a folder of image files.

    Args:
      path: a `.npz` file with the key `images`, or a `.npy` file: (N, H, W, C) uint8, uint16 or
        float in [0, 1]; or an image file, or a folder of image files.
      spec: the run's `DataSpec`. Image files are converted to grey or colour, cropped and resized
        like the run's data set. None reads image files unchanged.

    Returns:
      images (N, H, W, C). Arrays are returned as stored, except that uint16 becomes float in
      [0, 1]. Image files are read on demand, as integers over the full range of the spec's dtype.

    Raises:
      ValueError: if there is no such file, or it does not contain images.
    """
    path = mirror.existing(paths.parse(path, "images"))
    if path.is_dir():
        found = folder.pictures(path)
    elif path.suffix.lower() in ARRAYS:
        return _load_array(path, spec)
    else:
        found = [path] if path.suffix.lower() in SUFFIXES else []
    if not found:
        known = ", ".join((*ARRAYS, *SUFFIXES))
        raise ValueError(f"{path} has no images of a known type ({known}, or a folder of these)")
    if spec is None:
        return folder.FolderImages(found, 0, 0)
    images = folder.FolderImages(found, 0, spec.channels, spec.max_value, spec.num_bits)
    return splits.fitted(images, spec)


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Loads all arrays of a `.npz` file by name; the array of a `.npy` file is named `images`.

    Raises:
      ValueError: if there is no such file, it cannot be read, or it would unpack to much more than
        its own size.
    """
    return numpy_files.load(mirror.existing(paths.parse(path)))


def _load_array(path, spec):
    known = []

    def choose(names):
        known.extend(names)
        return [name for name in names if name in ("images", depth.WHITE_KEY)]

    arrays = numpy_files.load(path, choose)
    if "images" not in arrays:
        raise ValueError(f"{path} has no array `images`, only {', '.join(sorted(known))}")
    images = arrays["images"]
    if spec is None or images.dtype != np.uint16 or not images.size:
        return images
    white = depth.find_white(
        images,
        path,
        bits=16,
        max_value=spec.max_value,
        num_bits=spec.num_bits,
        recorded=depth.white_of_arrays(arrays),
    )
    return images.astype(np.float32) / np.float32(white)


def read(path: str | Path, spec: DataSpec, first: int = 0, end: int | None = None) -> np.ndarray:
    """Reads images number `first` to `end` - 1 of a file or folder for `load` as one array.

    Raises:
      ValueError: as `load`, or if the shape is not the run's, or there are no such images.
    """
    loaded = load(path, spec)
    check_shape(loaded, spec, path)
    if first >= loaded.shape[0]:
        raise ValueError(f"{path} has no image number {first}, only {loaded.shape[0]}")
    return take(loaded, range(loaded.shape[0])[first:end])


def take(images: Images | np.ndarray, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """Reads the images of these numbers as one array; image files of uint16 as float in [0, 1].

    Raises:
      ValueError: if one of them cannot be read; the message names its file.
    """
    if isinstance(images, np.ndarray):
        return images[numbers]
    if not len(numbers):
        return np.zeros((0, *images.shape[1:]), np.uint8)
    try:
        some = np.stack([images[int(i)] for i in numbers])
        return some if some.dtype == np.uint8 else some.astype(np.float32) / np.float32(65535)
    except CorruptError as error:
        raise faults.corrupt_images_error(images, error, "remove such files") from error


def select(
    experiment: Experiment,
    *,
    images: str | Path | None = None,
    split: str = "test",
    num: int | None = 8,
    first: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Reads images for a command, without padding, from a file or from the data set.

    They are already binarised and reduced to the data set's number of bits; `to_model` leaves such
    values unchanged.

    Args:
      experiment: an `Experiment`.
      images: a file or folder for `load`; None reads the data set.
      split: split of the data set.
      num: largest number of images; None reads all.
      first: number of the first image.
      seed: seed of the binarisation.

    Returns:
      (N, h, w, C) float32 in [0, 1].

    Raises:
      ValueError: as `to_model` and `load`, or if there are no such images.
    """
    end = None if num is None else first + num
    with processes.raise_together():
        if images is not None:
            found = read(images, experiment.data, first, end)
            with checks.naming(images):
                chosen = to_model(found, experiment.data, seed, first)
        else:
            chosen = _read_split(experiment.data, split, first, end, seed)
        if not len(chosen):
            raise ValueError(f"there is no image number {first}")
    return crop(chosen, experiment.data.padding)


def _read_split(spec, split, first, end, seed):
    split = pipeline.resolve_split(spec, split)
    size = pipeline.num_examples(spec, split)
    end = min(end or size, size)
    batches = pipeline.eval_batches(
        spec, split=split, batch_size=256, seed=seed, max_examples=max(end, 1)
    )
    return np.concatenate([batch["image"][batch["mask"]] for batch in batches])[first:]


def describe(arrays: np.ndarray | Sequence[np.ndarray], source: str) -> dict[str, Any]:
    """Describes the images or latents that an output is made from, as metadata.

    Args:
      arrays: (N, ...), or a list of such arrays.
      source: the file or split that they come from.

    Returns:
      a dict with `source`, its hash `source_sha256`, and the number `num` of images.
    """
    arrays = [np.asarray(a) for a in (arrays if isinstance(arrays, list) else [arrays])]
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).data)
    name, digest = Path(source).name, content.hexdigest()[:16]
    return {"source": name, "source_sha256": digest, "num": len(arrays[0])}


def describe_source(images: np.ndarray | None, source: str, num: int) -> dict[str, Any]:
    """Describes images as `describe` does, or, if they are None, `num` samples of the run."""
    return {"source": "samples", "num": num} if images is None else describe(images, source)


def starting_images(
    run: "Run", *, samples: bool, temperature: ArrayLike | None = None, **choice: Any
) -> tuple["Run", np.ndarray | None]:
    """Reads the images that a command starts from, unless it starts from samples of the run.

    Args:
      run: an `api.Run`.
      samples: whether the command starts from samples.
      temperature: temperature at which to recalibrate the run for samples; None does not.
      **choice: arguments of `select`.

    Returns:
      the run, recalibrated if requested; and the images, or None if it starts from samples.
    """
    if not samples:
        return run, select(run.experiment, **choice)
    return run if temperature is None else run.recalibrated(temperature), None
