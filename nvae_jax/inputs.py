"""Images from outside, checked and brought to what the model was trained on."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import checks, distributed, mirror, paths
from nvae_jax.build import Experiment
from nvae_jax.data import depth, faults, folder, numpy_files, pipeline, sources, transforms
from nvae_jax.data.images import SUFFIXES, Images
from nvae_jax.data.spec import CorruptError, DataSpec
from nvae_jax.likelihoods import crop
from nvae_jax.pictures import to_range

if TYPE_CHECKING:  # which imports this file
    from nvae_jax.api import Run

ARRAYS = (".npz", ".npy")


def to_model(images: ArrayLike, spec: DataSpec, seed: int = 0, first: int = 0) -> np.ndarray:
    """Prepares images without padding for the model.

    What training did to the images of its data set is done to these: binarised at random, reduced
    to fewer bits, padded.

    Args:
      images: (N, h, w, C), float in [0, 1] or uint8, without padding; for a model of more than 8
        bits float, or uint16 of values of so many bits.
      spec: the run's `DataSpec`.
      seed: of the binarisation, where there is one.
      first: number of the first image, for its random numbers.

    Returns:
      (N, H, W, C) float32 in [0, 1].

    Raises:
      ValueError: another shape, or values outside [0, 1].
    """
    prepared = []
    for i, image in enumerate(check(images, spec), first):
        rng = transforms.example_rng(seed, transforms.EVAL_STREAM, 0, i)
        prepared.append(transforms.to_model(image, spec, rng, train=False))
    return np.stack(prepared)


def check(images: ArrayLike, spec: DataSpec) -> np.ndarray:
    """Images without padding of the run's shape, as integers over the whole range of its dtype.
    Raises ValueError as `to_model`."""
    images = np.asarray(images)
    _check_shape(images, spec)
    return _in_range(images, spec)


def check_shape(images: Images | np.ndarray, spec: DataSpec, source: str | Path) -> None:
    """Raises ValueError, which names the `source`, unless images are of the run's shape, without
    padding, and there is one."""
    try:
        _check_shape(images, spec)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _check_shape(images, spec):
    size = spec.image_size - 2 * spec.padding
    checks.array("images", images, ("N", size, size, spec.channels))
    if not images.shape[0]:
        raise ValueError(f"there must be at least one image, not an array of shape {images.shape}")


def _in_range(images, spec):
    if images.dtype == np.uint8 == spec.dtype:
        return images
    if images.dtype == np.uint16 == spec.dtype:
        white = 2**spec.num_bits - 1
        if (high := images.max()) > white:
            raise ValueError(f"uint16 images of this model are from 0 to {white}, not to {high}")
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
    """Images from a file or a folder of pictures.

    Args:
      path: `.npz` with the key `images`, or `.npy`: (N, H, W, C) uint8, uint16 or float in [0, 1];
        or a picture, which is one image, or a folder of them, read as those of a data set are.
      spec: the run's `DataSpec`: pictures are made grey or coloured, cropped and resized as those
        of its data set. None takes a picture as it is.

    Returns:
      images (N, H, W, C): arrays as stored, but uint16 as float in [0, 1]; pictures are of the
        `spec`'s dtype over its whole range, and are read when asked for.

    Raises:
      ValueError: no such file, or it holds something else.
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
        raise ValueError(f"{path} has no images that are read here ({known}, or a folder of these)")
    if spec is None:
        return folder.FolderImages(found, 0, 0)
    images = folder.FolderImages(found, 0, spec.channels, spec.max_value, spec.num_bits)
    return sources.fitted(images, spec)


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file by name; that of an `.npy` file as `images`.

    Raises:
      ValueError: no such file, it cannot be read, or it claims to unpack to far more than it is.
    """
    return numpy_files.load(mirror.existing(paths.parse(path)))


def _load_array(path, spec):
    known = []

    def choose(names):
        known.extend(names)
        return [name for name in names if name in ("images", depth.NOTE)]

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
        noted=depth.white_of_arrays(arrays),
    )
    return images.astype(np.float32) / np.float32(white)


def read(path: str | Path, spec: DataSpec, first: int = 0, end: int | None = None) -> np.ndarray:
    """Images number `first` to `end` - 1 of what `load` finds, as an array of the run's shape.

    Raises:
      ValueError: as `load`, another shape, or there are no such images.
    """
    loaded = load(path, spec)
    check_shape(loaded, spec, path)
    if first >= loaded.shape[0]:
        raise ValueError(f"there is no image number {first}, only {loaded.shape[0]}")
    return take(loaded, range(loaded.shape[0])[first:end])


def take(images: Images | np.ndarray, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """The images of these numbers as an array: pictures of uint16 as float in [0, 1].

    Raises:
      ValueError: one of them cannot be read; it is named.
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
    """Images for a command, without padding: those of a file, or some of the data set.

    They are binarised and reduced to the data set's bits as the model wants them: doing so again
    changes nothing.

    Args:
      experiment: from `build.build`.
      images: a file or folder for `load`; None takes the data set's.
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
    with distributed.raise_together():
        if images is not None:
            found = read(images, experiment.data, first, end)
            chosen = to_model(found, experiment.data, seed, first)
        else:
            chosen = _of_split(experiment.data, split, first, end, seed)
        if not len(chosen):
            raise ValueError(f"there is no image number {first}")
    return crop(chosen, experiment.data.padding)


def _of_split(spec, split, first, end, seed):
    split = pipeline.resolve_split(spec, split)
    size = pipeline.num_examples(spec, split)
    end = min(end or size, size)
    batches = pipeline.eval_batches(
        spec, split=split, batch_size=256, seed=seed, max_examples=max(end, 1)
    )
    return np.concatenate([batch["image"][batch["mask"]] for batch in batches])[first:]


def describe(arrays: np.ndarray | Sequence[np.ndarray], source: str) -> dict[str, Any]:
    """Metadata about the images or latents that a file is made of.

    Args:
      arrays: (N, ...), or a list of such.
      source: the file or split that they come from, or what they are.
    """
    arrays = [np.asarray(a) for a in (arrays if isinstance(arrays, list) else [arrays])]
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).data)
    name, digest = Path(source).name, content.hexdigest()[:16]
    return {"source": name, "source_sha256": digest, "num": len(arrays[0])}


def describe_source(images: np.ndarray | None, source: str, num: int) -> dict[str, Any]:
    """`describe` of the images that something starts from, or where they are None of `num` samples
    of the run."""
    return {"source": "samples", "num": num} if images is None else describe(images, source)


def starting_images(
    run: "Run", *, samples: bool, temperature: ArrayLike | None = None, **choice: Any
) -> tuple["Run", np.ndarray | None]:
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
