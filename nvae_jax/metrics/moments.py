"""Mean and covariance of features, computed exactly in parts, and the Fréchet distance."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Moments:
    """The moments of a set of vectors, in float64.

    Attributes:
      count: number of vectors, N.
      mean: (F,).
      scatter: (F, F), the sum of the outer products of deviations from the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Computes the moments of vectors (N, F)."""
        features = np.asarray(features, np.float64)
        deviations = features - features.mean(0)
        return cls(len(features), features.mean(0), deviations.T @ deviations)

    def merge(self, other: Self) -> Self:
        """Computes the moments of the union of both sets, exactly (Chan et al. 1983)."""
        count, shift = self.count + other.count, other.mean - self.mean
        correction = np.outer(shift, shift) * (self.count * other.count / count)
        mean = self.mean + shift * (other.count / count)
        return type(self)(count, mean, self.scatter + other.scatter + correction)

    @property
    def covariance(self) -> np.ndarray:
        """The covariance (F, F), with N - 1 in the denominator."""
        return self.scatter / (self.count - 1)


def pool(parts: Iterable[np.ndarray]) -> Moments:
    """Computes the moments of all features in several parts (N, F), reading each part once."""
    return reduce(Moments.merge, map(Moments.of, parts))


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """The Fréchet distance |difference of means|² + trace(A + B - 2 (AB)^½) of two Gaussians with
    means (F,) and covariances A and B (F, F)."""
    shift = mean - other_mean
    # The trace of the square root of AB is the sum of the square roots of its eigenvalues.
    eigenvalues = np.linalg.eigvals(covariance @ other_covariance).real
    roots = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(shift @ shift + np.trace(covariance) + np.trace(other_covariance) - 2 * roots)
