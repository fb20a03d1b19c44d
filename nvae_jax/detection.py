"""Measures how well a score separates two sets of images, using scikit-learn (extra `scores`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nvae_jax import extras

TRUE_POSITIVES = 0.8  # the true-positive rate at which the false-positive rate is reported


def high_is_other(name: str) -> bool:
    """Whether a high score indicates images unlike the training data.

    That is the case for KLs and likelihood ratios; bounds on the likelihood are low instead.
    """
    return name.startswith(("kl_", "llr_"))


def measure(known: np.ndarray, other: np.ndarray, name: str) -> dict[str, Any]:
    """Measures how well a score detects images unlike the training data, the positive class.

    Args:
      known: (N,) scores of images like the training data.
      other: (M,) scores of the other images.
      name: name of the score, which determines its direction; see `high_is_other`.

    Returns:
      a dict with `auroc`, the area under the ROC curve: 0.5 by chance, less if the score points
      the wrong way; `auprc`, the average precision: M / (N + M) by chance; `fpr80`, the
      false-positive rate at a true-positive rate of 80%; `other_is`, "high" or "low".

    Raises:
      ValueError: if a score is not finite, or scikit-learn is not installed.
    """
    metrics = extras.load("sklearn.metrics", "scores", "--against")
    values = np.concatenate([known, other])
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: {(~np.isfinite(values)).sum()} score(s) are not finite")
    labels = np.repeat([0, 1], [len(known), len(other)])
    sign = 1 if high_is_other(name) else -1
    false, true, _ = metrics.roc_curve(labels, sign * values)
    return {
        "auroc": float(metrics.roc_auc_score(labels, sign * values)),
        "auprc": float(metrics.average_precision_score(labels, sign * values)),
        "fpr80": float(false[np.argmax(true >= TRUE_POSITIVES)]),
        "other_is": "high" if sign == 1 else "low",
    }


def measure_all(
    known: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Applies `measure` to each score in nats and returns {name: result}.

    Scores in bits per dimension would rank images the same way.
    """
    return {name: measure(known[name], other[name], name) for name in nats(known)}


def nats(scores: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the scores that are in nats."""
    return [name for name in scores if not name.endswith("bits_per_dim")]
