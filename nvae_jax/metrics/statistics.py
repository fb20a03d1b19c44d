"""Statistics of the features of a set of images: reading, writing, distances between two sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvae_jax import extras, inputs, paths, pictures
from nvae_jax.metrics import moments

KID_SUBSET = 1000  # images per subset of KID, if there are as many
# The metadata of statistics in a file.
ABOUT = ("features", "library", "weights_sha256", "weights_published", "fitted_to", "resize")
ABOUT += ("fitted_sha256", "feature_size", "pixels", "reference", "num_reference")


@dataclass(frozen=True)
class Statistics:
    """Statistics of the features of a set of images.

    Attributes:
      num: number of images, N; None if unknown.
      mean: (F,).
      covariance: (F, F).
      features: (N, F); None if a file has only mean and covariance.
    """

    num: int | None
    mean: np.ndarray
    covariance: np.ndarray
    features: np.ndarray | None


def compare(samples: Statistics, reference: Statistics, *, inception: bool) -> dict[str, Any]:
    """Computes the distances of samples from a reference.

    Args:
      samples: statistics of the samples.
      reference: statistics of the reference.
      inception: whether the features are those of the Inception network.

    Returns:
      with `inception`, computed by torch-fidelity: `fid`, and if the reference has features `kid`,
      `kid_std` (over subsets), `kid_subset_size`, `precision` and `recall`. Otherwise
      `frechet_distance`.
    """
    pair = [(s.mean, s.covariance) for s in (samples, reference)]
    if not inception:
        return {"frechet_distance": moments.frechet_distance(*pair[0], *pair[1])}
    formulas = extras.load("torch_fidelity.metric_fid", "metrics", "fid")
    named = [{"mu": mean, "sigma": covariance} for mean, covariance in pair]
    fid = formulas.fid_statistics_to_metric(*named, verbose=False)
    found = {"fid": fid[formulas.KEY_METRIC_FID]}
    if samples.features is None or reference.features is None:
        return found
    return found | _by_features(samples.features, reference.features)


def _by_features(samples, reference):
    torch = extras.load("torch", "metrics", "fid")
    kid = extras.load("torch_fidelity.metric_kid", "metrics", "fid")
    prc = extras.load("torch_fidelity.metric_prc", "metrics", "fid")
    both = [torch.from_numpy(np.ascontiguousarray(f)) for f in (samples, reference)]
    size = min(KID_SUBSET, len(samples), len(reference))
    distance = kid.kid_features_to_metric(*both, kid_subset_size=size, verbose=False)
    # Computed in batches: all distances at once would need 40 GB for 50,000 images.
    rates = prc.prc_features_to_metric(*both, save_cpu_ram=True, prc_batch_size=1000, verbose=False)
    return {
        "kid": distance[kid.KEY_METRIC_KID_MEAN],
        "kid_std": distance[kid.KEY_METRIC_KID_STD],
        "kid_subset_size": size,
        "precision": rates[prc.KEY_METRIC_PRECISION],
        "recall": rates[prc.KEY_METRIC_RECALL],
    }


def load(path: str | Path, about: Mapping[str, Any]) -> Statistics | None:
    """Loads the statistics of a reference from an `.npz` file with `mu` and `sigma`.

    A file written by `save` also has the features and metadata. For other files the result is None.

    Args:
      path: the file.
      about: {name: value}, the expected metadata.

    Raises:
      ValueError: if the statistics are of other features, or not finite.
    """
    path = paths.parse(path)
    if path.suffix.lower() != ".npz" or not path.is_file():
        return None
    arrays = inputs.load_arrays(path)
    if not {"mu", "sigma"} <= arrays.keys():
        return None
    for name, value in about.items():
        stored = arrays[name].tolist() if name in arrays else value
        if stored != value:
            raise ValueError(f"{path} has other statistics: {name} is {stored!r}, not {value!r}")
    mean, covariance = arrays["mu"], arrays["sigma"]
    size = about["feature_size"]
    if mean.shape != (size,) or covariance.shape != (size, size):
        raise ValueError(
            f"{path} has mu {mean.shape} and sigma {covariance.shape}, but there are {size} "
            "features"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path}: mu and sigma must be finite")
    num = int(arrays["num_reference"]) if "num_reference" in arrays else None
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    return Statistics(num, mean, covariance, arrays.get("features_of_images"))


def save(path: Path, stored: Statistics, metadata: Mapping[str, Any]) -> None:
    """Writes statistics for `load`, with the metadata that describe the features."""
    about = {name: metadata[name] for name in ABOUT if name in metadata}
    arrays = {"mu": stored.mean, "sigma": stored.covariance, "features_of_images": stored.features}
    pictures.save_arrays(path, **arrays, **about)
