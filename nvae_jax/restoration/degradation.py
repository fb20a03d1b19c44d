"""Degrades images by a mask, low resolution and noise, and checks degraded images."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import checks, inputs
from nvae_jax.data.spec import DataSpec
from nvae_jax.restoration import masks
from nvae_jax.restoration.observed import Observed
from nvae_jax.restoration.smooth import shrink

MAX_NOISE = 10


def degrade(
    images: np.ndarray,
    *,
    mask: ArrayLike | None = None,
    scale: int = 1,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """Degrades whole images (N, H, W, C) to an input of `restore`: their means over blocks of
    `scale` x `scale` pixels, plus noise, and 0 for the pixels that `mask` declares unknown."""
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
    """Checks the arguments of `restore`, and returns what is known of the images."""
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
    """Which pixels of `num` images are known, (N, h, w, 1) bool. Raises ValueError as `restore`."""
    if not 0 <= noise <= MAX_NOISE:
        raise ValueError(f"noise must be a standard deviation, up to {MAX_NOISE}, not {noise}")
    size = smaller(spec, scale).image_size
    known = np.ones((num, size, size), bool) if mask is None else masks.check(mask, size, num)
    known = known[..., None]
    if known.all() and scale == 1 and not noise:
        raise ValueError("the images are fully known: give a mask, a scale or noise")
    return known


def _values(images, known, spec, noise):
    """Checked float values in [0, 1]; outside of it only with noise. Unknown ones can be NaN."""
    if not np.issubdtype(images.dtype, np.floating):
        return inputs.check(images, spec) / np.iinfo(spec.dtype).max
    images = np.where(known, images, 0)
    outside = noise and np.isfinite(images).all()
    inputs.check(np.clip(images, 0, 1) if outside else images, spec)
    return images


def smaller(spec: DataSpec, scale: int) -> DataSpec:
    """The spec of unpadded images at 1 / scale of the size. Raises ValueError if that is not a
    whole number."""
    size = spec.unpadded_size
    if scale < 1 or size % scale:
        raise ValueError(f"scale must divide {size}, the height and width of images, not {scale}")
    return dataclasses.replace(spec, image_size=size // scale, padding=0)
