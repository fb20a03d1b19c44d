"""The Fréchet distance between two sets of small images.

It is the distance between two Gaussians, in the space of the first principal components of a
reference set; unlike FID it needs no network. Distances can be compared only for the same reference
images.
"""

import numpy as np

from nvae_jax.metrics.moments import Moments, frechet_distance


def principal_axes(images: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes principal axes of images.

    Args:
      images: (N, ...).
      components: number of axes; at most N are returned.

    Returns:
      (mean (D,), axes (D, K)) such that (flattened images - mean) @ axes are the first K principal
      components.
    """
    flat = images.reshape(len(images), -1)
    mean = flat.mean(0)
    _, _, axes = np.linalg.svd(flat - mean, full_matrices=False)
    return mean, axes[:components].T


def picture_distance(
    images: np.ndarray, reference: np.ndarray, axes: tuple[np.ndarray, np.ndarray]
) -> float:
    """The Fréchet distance of images (N, ...) from reference images (M, ...).

    Args:
      images: the images to judge.
      reference: the reference images.
      axes: the result of `principal_axes` for the reference images.
    """
    mean, rotation = axes
    one, other = (
        Moments.of((pictures.reshape(len(pictures), -1) - mean) @ rotation)
        for pictures in (images, reference)
    )
    return frechet_distance(one.mean, one.covariance, other.mean, other.covariance)
