"""Maps a likelihood's name to its parameters per pixel and its distribution over images.

To add one: a file in `distributions/` with `log_prob_pixels`, `sample`, `mean` and `moments`, and a
row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.typing import ArrayLike

from nvae_jax import checks
from nvae_jax.distributions.bernoulli import Bernoulli
from nvae_jax.distributions.gaussian import GaussianPixels
from nvae_jax.distributions.logistic_mixture import GreyLogisticMixture, LogisticMixture


@dataclass(frozen=True)
class _Row:
    distribution: Callable[..., Any]  # (logits, num_bits, image channels) -> distribution
    num_params: Callable[[int, int], int]  # (image channels, mixtures) -> parameters per pixel
    channels: Callable[[int], int]  # parameters per pixel -> image channels, where none are named
    allowed: tuple[int, ...] | None = None  # image channels it can model; None: any
    is_density: bool = False  # rather than a probability of pixel values
    most_bits: int = 16  # of a value


def _logistic_mixture(logits, num_bits, channels):
    return (LogisticMixture if channels == 3 else GreyLogisticMixture)(logits, num_bits)


REGISTRY = {
    "bernoulli": _Row(
        lambda logits, bits, c: Bernoulli(logits), lambda c, m: c, lambda p: p, most_bits=8
    ),
    "logistic_mixture": _Row(
        _logistic_mixture, lambda c, m: 10 * m if c == 3 else 3 * m, lambda p: 3, (1, 3)
    ),
    "gaussian": _Row(
        lambda logits, bits, c: GaussianPixels(logits),
        lambda c, m: 2 * c,
        lambda p: p // 2,
        is_density=True,
    ),
}


def _row(name):
    if name not in REGISTRY:
        raise ValueError(f"unknown likelihood {name!r}; known: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]


def num_params(name: str, channels: int, num_mixtures: int = 10) -> int:
    """Parameters per pixel that the image head must put out.

    Raises:
      ValueError: the name is unknown, or the likelihood cannot model that many image channels.
    """
    row = _row(name)
    if row.allowed and channels not in row.allowed:
        fitting = [n for n, r in REGISTRY.items() if not r.allowed or channels in r.allowed]
        allowed = " or ".join(map(str, row.allowed))
        raise ValueError(
            f"model.likelihood={name!r} models images of {allowed} channels, not {channels}; for "
            f"{channels} channel(s) use one of: {', '.join(sorted(fitting))}"
        )
    return row.num_params(channels, num_mixtures)


def check_bits(name: str, num_bits: int) -> None:
    """Raises ValueError where a likelihood says nothing of values of so many bits."""
    if num_bits > _row(name).most_bits:
        fitting = sorted(n for n, row in REGISTRY.items() if num_bits <= row.most_bits)
        raise ValueError(
            f"model.likelihood={name!r} is of values of up to {_row(name).most_bits} bits, not of "
            f"data.num_bits={num_bits}: use one of {', '.join(fitting)}"
        )


def default(binary: bool) -> str:
    """The usual likelihood of images, binary or not: what "auto" in a config stands for."""
    return "bernoulli" if binary else "logistic_mixture"


@dataclass(frozen=True)
class ImageDistribution:
    """p(x | z) over whole images: a pixel distribution, summed over all but the padding."""

    pixels: Any
    padding: int
    image_shape: tuple[int, int, int]
    is_density: bool = False  # on [-1, 1], rather than a probability of pixel values

    @property
    def num_dims(self) -> int:
        """How many image values the log-likelihood sums over, for bits per dimension."""
        h, w, c = self.image_shape
        return (h - 2 * self.padding) * (w - 2 * self.padding) * c

    @property
    def bits_key(self) -> str:
        """What results call a log-likelihood per image value in bits: a density's is not that of
        pixel values, and compares with other densities on [-1, 1] alone."""
        return "density_bits_per_dim" if self.is_density else "bits_per_dim"

    def log_prob_pixels(self, x: jax.Array) -> jax.Array:
        """Log-likelihood in nats of each value (or RGB pixel) of `x` (B, H, W, C) in [0, 1]."""
        return self.pixels.log_prob_pixels(x)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """log p(x | z) in nats, as (B,), for `x` (B, H, W, C) in [0, 1]; padding does not count."""
        checks.array("images", x, ("B", *self.image_shape), float)
        terms = crop(self.log_prob_pixels(x), self.padding)
        return terms.sum(tuple(range(1, terms.ndim)))

    def sample(self, key: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
        """Draws images (B, H, W, C) in [0, 1]."""
        return self.pixels.sample(key, temperature)

    def mean(self) -> jax.Array:
        """The mean images (B, H, W, C) in [0, 1]."""
        return self.pixels.mean()

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each value, (B, H, W, C), in units of [0, 1] but not clipped."""
        return self.pixels.moments()


# Maps the decoder's output (B, H, W, params) to a distribution of images.
Likelihood = Callable[[jax.Array], ImageDistribution]
ImagesT = TypeVar("ImagesT", jax.Array, np.ndarray)


def make(
    name: str,
    logits: jax.Array,
    *,
    num_bits: int = 8,
    padding: int | None = None,
    channels: int | None = None,
) -> ImageDistribution:
    """The distribution of images given the decoder's output.

    Args:
      name: a key of `REGISTRY`.
      logits: (B, H, W, params), parameters per pixel.
      num_bits: bits per colour value, for discretised likelihoods.
      padding: rows and columns on every side that hold no image and do not count in `log_prob`.
        None means 2 for a Bernoulli over 32×32, which is how the 28×28 sets are fed, otherwise 0.
      channels: of the images. None takes what follows from the parameters, and 3 for a
        "logistic_mixture": a mixture of grey values must be asked for with 1.
    """
    row = _row(name)
    checks.array("logits", logits, ("B", "H", "W", "params"), float)
    _, h, w, params = logits.shape
    if padding is None:
        padding = 2 if name == "bernoulli" and (h, w) == (32, 32) else 0
    channels = channels or row.channels(params)
    pixels = row.distribution(logits, num_bits, channels)
    return ImageDistribution(pixels, padding, (h, w, channels), row.is_density)


def crop(images: ImagesT, padding: int) -> ImagesT:
    """Cuts `padding` rows and columns off every side of (B, H, W, ...) images."""
    return images[:, padding : images.shape[1] - padding, padding : images.shape[2] - padding]


def bits_per_dim(nats: Any, num_dims: int) -> Any:
    """Nats per image as bits per image value."""
    return nats / (np.log(2.0) * num_dims)
