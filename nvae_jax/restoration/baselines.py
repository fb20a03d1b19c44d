"""Restorations without a model: the methods start from them, and must be better than them."""

import numpy as np
import scipy.ndimage

from nvae_jax.restoration import smooth
from nvae_jax.restoration.observed import Observed

ROUNDS = 500  # iterations of Jacobi's method
LITTLE_NOISE = 0.01  # standard deviation up to which noise is not filtered


def fill_mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills unknown pixels of each image (N, H, W, C) with the mean of the known ones, for each
    channel; `known` is (N, H, W, 1)."""
    known = np.broadcast_to(known, values.shape)
    means = (values * known).sum((1, 2), keepdims=True) / known.sum((1, 2), keepdims=True)
    return np.where(known, values, means).astype(np.float32)


def fill_smooth(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fills unknown pixels with the mean of their four neighbours (Laplace's equation)."""
    return np.asarray(smooth.fill(fill_mean(values, known), known, 1.0, ROUNDS))


def bicubic(values: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges images (N, h, w, C) to `scale` times the resolution, clipped to [0, 1]."""
    return np.clip(np.asarray(smooth.bicubic(values, scale)), 0.0, 1.0)


def blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Applies a Gaussian filter of `sigma` pixels to (N, H, W, C), and clips to [0, 1]."""
    blurred = scipy.ndimage.gaussian_filter(values, (0, sigma, sigma, 0), mode="nearest")
    return np.clip(blurred, 0.0, 1.0)


def first_guess(observed: Observed) -> np.ndarray:
    """The plain restoration (N, H, W, C) in [0, 1] that the methods start from: smooth fill, a
    Gaussian filter, and bicubic interpolation with corrected means over blocks."""
    filled = _filled(observed)
    if (noise := float(np.sqrt(np.max(observed.variance)))) > LITTLE_NOISE:
        filled = blur(filled, 1 + 3 * noise)
    return np.clip(np.asarray(smooth.enlarge(filled, observed.scale)), 0.0, 1.0)


def contrast(observed: Observed) -> np.ndarray:
    """Mean squared difference of neighbouring pixels after a smooth fill, (N,)."""
    filled = _filled(observed)
    squares = [np.square(np.diff(filled, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)]
    return np.mean(squares, axis=0)


def _filled(observed):
    values, known = np.clip(observed.values, 0.0, 1.0), np.asarray(observed.known, bool)
    return values if known.all() else fill_smooth(values, known)


def psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each image (N, H, W, C) in [0, 1], (N,)."""
    errors = np.mean((np.asarray(images, np.float64) - originals) ** 2, axis=(1, 2, 3))
    return -10.0 * np.log10(np.maximum(errors, 1e-10))
