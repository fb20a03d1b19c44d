"""The Fréchet distance between sets of small pictures: how far two distributions are apart.

It is that of Gaussians, in the space of the first principal components of one of the sets: no
network and no weights are wanted. Only numbers of the same reference pictures compare.
"""

import numpy as np

from nvae_jax.metrics.moments import Moments, frechet_distance


def principal_axes(images: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """(mean, axes) of pictures (N, ...): flat pictures less the mean, times the axes, are their
    first principal components, of which there are no more than pictures."""
    flat = images.reshape(len(images), -1)
    mean = flat.mean(0)
    _, _, axes = np.linalg.svd(flat - mean, full_matrices=False)
    return mean, axes[:components].T


def picture_distance(
    images: np.ndarray, reference: np.ndarray, axes: tuple[np.ndarray, np.ndarray]
) -> float:
    """The distance of pictures from reference pictures in the space of `principal_axes`."""
    mean, rotation = axes
    one, other = (
        Moments.of((pictures.reshape(len(pictures), -1) - mean) @ rotation)
        for pictures in (images, reference)
    )
    return frechet_distance(one.mean, one.covariance, other.mean, other.covariance)
