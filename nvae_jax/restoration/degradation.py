"""What `restore` is given: images degraded by a mask, low resolution and noise, and checked."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import checks, inputs
from nvae_jax.data.spec import DataSpec
from nvae_jax.restoration.observed import Observed
from nvae_jax.restoration.smooth import shrink

MOST_NOISE = 10


def degrade(
    images: np.ndarray,
    *,
    mask: ArrayLike | None = None,
    scale: int = 1,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """What `restore` would be given of whole images (N, H, W, C): their means over blocks of
    `scale` pixels each way, plus noise, and 0 where `mask` says that nothing is known."""
    small = shrink(images, scale)
    noisy = small + noise * np.random.default_rng(seed).standard_normal(small.shape)
    known = 1 if mask is None else np.asarray(mask, bool)[..., None]
    return (noisy * known).astype(np.float32)


def observe(
    images: ArrayLike,
    spec: DataSpec,
    *,
    mask: ArrayLike | None = None,
    scale: int = 1,
    noise: float = 0.0,
) -> Observed:
    """What is known of images, checked; see `restore`."""
    small, images = smaller(spec, scale), np.asarray(images)
    checks.array("images", images, ("N", *small.image_shape))
    known = check_degradation(len(images), spec, mask=mask, scale=scale, noise=noise)
    rounding = 1 / (2**spec.num_bits - 1) ** 2 / 12 if scale > 1 else 0.0
    variance = np.full((len(images), 1, 1, 1), noise**2 + rounding, np.float32)
    exact = scale == 1 and not noise
    values = np.where(known, _values(images, known, small, noise), 0).astype(np.float32)
    return Observed(values, known.astype(np.float32), variance, scale, exact)


def check_degradation(
    num: int, spec: DataSpec, *, mask: ArrayLike | None, scale: int, noise: float
) -> np.ndarray:
    """Where pixels of `num` images are known, (N, h, w, 1) bool. Raises ValueError as `restore`."""
    if not 0 <= noise <= MOST_NOISE:
        raise ValueError(f"noise must be a standard deviation, up to {MOST_NOISE}, not {noise}")
    known = _known(mask, num, smaller(spec, scale))
    if known.all() and scale == 1 and not noise:
        raise ValueError("nothing is unknown of the images: there is no mask, scale or noise")
    return known


def _values(images, known, spec, noise):
    """Checked, float in [0, 1], or outside with noise; NaN may be where nothing is known."""
    if not np.issubdtype(images.dtype, np.floating):
        return inputs.check(images, spec) / np.iinfo(spec.dtype).max
    images = np.where(known, images, 0)
    outside = noise and np.isfinite(images).all()
    inputs.check(np.clip(images, 0, 1) if outside else images, spec)
    return images


def smaller(spec: DataSpec, scale: int) -> DataSpec:
    """The spec of images without padding at 1 / scale of the size. Raises ValueError where that is
    no whole number."""
    size = spec.image_size - 2 * spec.padding
    if scale < 1 or size % scale:
        raise ValueError(f"scale must divide {size}, the height and width of images, not {scale}")
    return dataclasses.replace(spec, image_size=size // scale, padding=0)


def _known(mask, num, spec):
    """(N, h, w, 1) bool."""
    shape = (num, spec.image_size, spec.image_size)
    if mask is None:
        return np.ones((*shape, 1), bool)
    mask = np.asarray(mask)
    if mask.shape not in (shape[1:], (1, *shape[1:]), shape):
        raise ValueError(f"mask must be of shape {shape[1:]} or {shape}, not {mask.shape}")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("mask must be 1 where a pixel is known and 0 where it is not")
    mask = np.broadcast_to(mask.astype(bool), shape)[..., None]
    if not mask.any((1, 2, 3)).all():
        raise ValueError("mask leaves no pixel of an image known")
    return mask
