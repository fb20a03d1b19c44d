"""Plain restorations: where the methods start, and what they are to be better than."""

import jax
import numpy as np
import scipy.ndimage

from nvae_jax.restoration.observed import Observed

ROUNDS = 500  # of Jacobi's method


def fill_mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Unknown pixels as the mean of the known ones, for each image (N, H, W, C) and colour; `known`
    is (N, H, W, 1)."""
    known = np.broadcast_to(known, values.shape)
    means = (values * known).sum((1, 2), keepdims=True) / known.sum((1, 2), keepdims=True)
    return np.where(known, values, means).astype(np.float32)


def fill_smooth(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Unknown pixels as the mean of their four neighbours (Laplace's equation)."""
    filled = fill_mean(values, known)
    for _ in range(ROUNDS):
        wide = np.pad(filled, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        mean = (wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]) / 4
        filled = np.where(known, values, mean).astype(np.float32)
    return filled


def bicubic(values: np.ndarray, scale: int) -> np.ndarray:
    """(N, h, w, C) at `scale` times the resolution, clipped to [0, 1]."""
    n, h, w, c = values.shape
    larger = jax.image.resize(values, (n, h * scale, w * scale, c), "cubic")
    return np.clip(np.asarray(larger), 0.0, 1.0)


def blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """(N, H, W, C) with a Gaussian filter of `sigma` pixels, clipped to [0, 1]."""
    blurred = scipy.ndimage.gaussian_filter(values, (0, sigma, sigma, 0), mode="nearest")
    return np.clip(blurred, 0.0, 1.0)


def first_guess(observed: Observed) -> np.ndarray:
    """The plain restoration (N, H, W, C) in [0, 1] that the methods start from."""
    values, known = np.clip(observed.values, 0.0, 1.0), np.asarray(observed.known, bool)
    filled = values if known.all() else fill_smooth(values, known)
    return filled if observed.scale == 1 else bicubic(filled, observed.scale)


def psnr(images: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each image (N, H, W, C) in [0, 1], (N,)."""
    errors = np.mean((np.asarray(images, np.float64) - originals) ** 2, axis=(1, 2, 3))
    return -10.0 * np.log10(np.maximum(errors, 1e-10))
