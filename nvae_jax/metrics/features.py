"""Features by which samples and images are compared: those of torch-fidelity's Inception network
(extra `metrics`), or principal components, which need no weights."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nvae_jax import extras, files, mirror, paths
from nvae_jax.metrics import moments

LARGEST_COMPONENTS_SIZE = 32  # larger images are averaged down before computing components, pixels
FIT_IMAGES = 20_000  # largest number of images that components are fitted to


class Features(Protocol):
    """Maps images to feature vectors. `about` describes the features for files and messages."""

    size: int
    about: dict[str, Any]

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


class Inception:
    """The 2,048 pool features of torch-fidelity's Inception network, with which FID, KID, precision
    and recall are defined.

    Args:
      weights: file of the network's weights.
      sha256: expected hash of the file, or at least its first 8 digits; None expects the published
        file.

    Raises:
      ValueError: if torch-fidelity is not installed, there is no such file, its hash differs, or it
        does not contain weights of this network.
    """

    size = 2048

    def __init__(self, weights: str | Path | None, sha256: str | None = None):
        self._library = _library()
        url = self._library.URL_INCEPTION_V3
        published = Path(url).stem.rpartition("-")[2]
        if not weights:
            raise ValueError(
                f"--weights=FILE is missing: download {url}; it is never downloaded automatically"
            )
        weights = mirror.local(paths.parse(weights, "weights"))
        digest = _check_hash(weights, sha256 or published, url)
        self._network = _load(self._library, weights)
        self.about = {
            "features": "inception-v3-compat 2048",
            "library": f"torch-fidelity {_version()}",
            "weights_sha256": digest,
            "weights_published": digest.startswith(published),
            "resize": "299x299, bilinear as in TensorFlow 1",
        }

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Computes features (B, 2048), float32, of images (B, H, W, C), uint8 or float in [0, 1].

        Grey images are repeated to three channels.
        """
        torch = extras.load("torch", "metrics", "fid")
        images = np.broadcast_to(images, (*images.shape[:3], 3)).transpose(0, 3, 1, 2)
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        with torch.inference_mode():
            if images.dtype == np.uint8:
                return self._network(pixels)[0].numpy()
            return self._of_floats(pixels.float() * 255).numpy()

    def _of_floats(self, pixels):
        """Computes features of pixels that are not rounded.

        The network accepts only uint8, so a hook replaces the input of its first layer, which was
        computed from rounded pixels, by that of `pixels`.
        """
        size = (self._network.INPUT_IMAGE_SIZE,) * 2
        resize = self._library.interpolate_bilinear_2d_like_tensorflow1x
        resized = (resize(pixels, size=size, align_corners=False) - 128) / 128
        hook = self._network.Conv2d_1a_3x3.register_forward_pre_hook(lambda *_: (resized,))
        with hook:
            return self._network(pixels.byte())[0]


def _library():
    try:
        return extras.load("torch_fidelity.feature_extractor_inceptionv3", "metrics", "fid")
    except RuntimeError as error:  # torchvision was built for another PyTorch
        raise ValueError(
            f"fid: torch-fidelity cannot be imported ({_first_line(error)}): the releases and "
            "builds (CPU or CUDA) of torch and torchvision must match"
        ) from error


def _version():
    return extras.load("torch_fidelity", "metrics", "fid").__version__


def _check_hash(weights, wanted, url):
    wanted = wanted.lower()
    if len(wanted) < 8 or len(wanted) > 64 or not set(wanted) <= set("0123456789abcdef"):
        raise ValueError(f"weights_sha256 must be 8 to 64 hexadecimal digits, not {wanted!r}")
    file: Any
    with files.open_regular(weights) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(wanted):
        raise ValueError(
            f"{weights} has the SHA-256 {digest[:16]}..., not {wanted}...: the published weights "
            f"are {url}; for others set --weights_sha256"
        )
    return digest


def _load(library, weights):
    torch = extras.load("torch", "metrics", "fid")
    try:
        torch.load(weights, weights_only=True)  # checked first: the library would run code in it
        name, layers = "inception-v3-compat", ["2048"]
        return library.FeatureExtractorInceptionV3(
            name, layers, feature_extractor_weights_path=str(weights)
        )
    except Exception as error:  # loading another file can raise anything
        raise ValueError(
            f"{weights} holds no weights of the Inception network ({_first_line(error)})"
        ) from error


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")[:120]


class PrincipalComponents:
    """The first principal components of images in [0, 1].

    Args:
      batches: batches of images (B, H, W, C), uint8 or float in [0, 1]; the components are fitted
        to the first 20,000.
      num: number of components.

    Raises:
      ValueError: if there are too few images, or too few values in an image.
    """

    def __init__(self, batches: Iterable[np.ndarray], num: int):
        content = hashlib.sha256()
        fitted = moments.pool(map(_flat, _first(batches, FIT_IMAGES, content)))
        if not 1 <= num <= min(fitted.count - 1, len(fitted.mean)):
            raise ValueError(
                f"components={num}: {fitted.count} images of {len(fitted.mean)} values have at "
                f"most {min(fitted.count - 1, len(fitted.mean))}"
            )
        _, axes = np.linalg.eigh(fitted.covariance)
        self._axes, self.size = axes[:, ::-1][:, :num], num
        self.about = {
            "features": f"{num} principal components",
            "library": "none",
            "fitted_to": fitted.count,
            "fitted_sha256": content.hexdigest()[:16],
            "resize": f"averaged down to at most {LARGEST_COMPONENTS_SIZE} pixels per side",
        }

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Computes components (B, num), float64, of images (B, H, W, C), uint8 or in [0, 1]."""
        return _flat(images) @ self._axes


def _first(batches, count, content):
    """Yields the first `count` images and adds their bytes to the hash `content`."""
    for batch in batches:
        content.update(np.ascontiguousarray(batch[:count]).data)
        yield batch[:count]
        count -= len(batch)
        if count <= 0:
            return


def _flat(images):
    images = np.asarray(images, np.float64) / (255 if images.dtype == np.uint8 else 1)
    while images.shape[1] > LARGEST_COMPONENTS_SIZE and images.shape[1] % 2 == 0:
        count, height, width, channels = images.shape
        images = images.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    return images.reshape(len(images), -1)
