"""The likelihoods p(x | z) by name: their parameters per pixel and their distribution over images.

To add one, write a class in `distributions/` with the methods `log_prob_pixels`, `sample`, `mean`
and `moments`, and add a row to `REGISTRY`.
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
    channels: Callable[[int], int]  # parameters per pixel -> default number of image channels
    allowed: tuple[int, ...] | None = None  # image channels that it can model; None: any
    is_density: bool = False  # a density rather than a probability mass of pixel values
    max_bits: int = 16  # largest data.num_bits that it can model


def _logistic_mixture(logits, num_bits, channels):
    return (LogisticMixture if channels == 3 else GreyLogisticMixture)(logits, num_bits)


REGISTRY = {
    "bernoulli": _Row(
        lambda logits, bits, c: Bernoulli(logits), lambda c, m: c, lambda p: p, max_bits=8
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
    """The number of parameters per pixel that the decoder must output.

    Raises:
      ValueError: if the name is unknown, or the likelihood cannot model so many image channels.
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
    """Raises ValueError if a likelihood cannot model values of so many bits."""
    if num_bits > _row(name).max_bits:
        fitting = sorted(n for n, row in REGISTRY.items() if num_bits <= row.max_bits)
        raise ValueError(
            f"model.likelihood={name!r} models values of up to {_row(name).max_bits} bits, but "
            f"data.num_bits={num_bits}: use one of {', '.join(fitting)}"
        )


def default(binary: bool) -> str:
    """The likelihood that "auto" in a config stands for, given whether the images are binary."""
    return "bernoulli" if binary else "logistic_mixture"


@dataclass(frozen=True)
class ImageDistribution:
    """The distribution p(x | z) of whole images; padding does not count.

    Attributes:
      pixels: the distribution of each pixel, from `distributions/`.
      padding: rows and columns on every side that do not belong to the image.
      image_shape: (H, W, C), with padding.
      is_density: whether it is a density on [-1, 1] rather than a probability of pixel values.
    """

    pixels: Any
    padding: int
    image_shape: tuple[int, int, int]
    is_density: bool = False

    @property
    def num_dims(self) -> int:
        """The number of image values without padding, for bits per dimension."""
        h, w, c = self.image_shape
        return (h - 2 * self.padding) * (w - 2 * self.padding) * c

    @property
    def bits_key(self) -> str:
        """The name of a log-likelihood in bits per image value in results.

        A density has another name, because it can be compared only with other densities on [-1, 1].
        """
        return "density_bits_per_dim" if self.is_density else "bits_per_dim"

    def log_prob_pixels(self, x: jax.Array) -> jax.Array:
        """Log-likelihood in nats of each value (or RGB pixel) of `x` (B, H, W, C) in [0, 1]."""
        return self.pixels.log_prob_pixels(x)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """log p(x | z) in nats, (B,), of images `x` (B, H, W, C) in [0, 1], without padding."""
        checks.array("images", x, ("B", *self.image_shape), float)
        terms = crop(self.log_prob_pixels(x), self.padding)
        return terms.sum(tuple(range(1, terms.ndim)))

    def sample(self, key: jax.Array, temperature: ArrayLike = 1.0) -> jax.Array:
        """Draws images (B, H, W, C) in [0, 1] with random numbers from `key`."""
        return self.pixels.sample(key, temperature)

    def mean(self) -> jax.Array:
        """The mean images (B, H, W, C) in [0, 1]."""
        return self.pixels.mean()

    def moments(self) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each image value, each (B, H, W, C), scaled to images in [0, 1] but
        not clipped to that range."""
        return self.pixels.moments()


# A function from the decoder's output (B, H, W, params) to a distribution of images.
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
    """Makes the distribution of images from the decoder's output.

    Args:
      name: a key of `REGISTRY`.
      logits: (B, H, W, params), the parameters of each pixel.
      num_bits: bits per image value, for discretised likelihoods.
      padding: rows and columns on every side that do not count in `log_prob`. None means 2 for a
        Bernoulli distribution of 32×32 images, which are padded 28×28 images; otherwise 0.
      channels: number of image channels. None derives it from the number of parameters; for
        "logistic_mixture" it means 3, so pass 1 for grey images.

    Raises:
      ValueError: if the name is unknown, or `logits` has not four axes.
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
    """Removes `padding` rows and columns from every side of images (B, H, W, ...)."""
    return images[:, padding : images.shape[1] - padding, padding : images.shape[2] - padding]


def bits_per_dim(nats: Any, num_dims: int) -> Any:
    """Converts nats per image to bits per image value."""
    return nats / (np.log(2.0) * num_dims)
