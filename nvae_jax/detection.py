"""How well a score tells two sets of images apart, by scikit-learn (extra `scores`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nvae_jax import extras

TRUE_POSITIVES = 0.8  # at which the rate of false ones is given


def high_is_other(name: str) -> bool:
    """Whether a high score speaks for images unlike the training data: KLs and likelihood ratios,
    while bounds on the likelihood are low there."""
    return name.startswith(("kl_", "llr_"))


def measure(known: np.ndarray, other: np.ndarray, name: str) -> dict[str, Any]:
    """How well a score detects images unlike the training data, which are the positives.

    Args:
      known: (N,), of images like the training data.
      other: (M,), of the others.
      name: of the score, which says its direction; see `high_is_other`.

    Returns:
      `auroc`, the area under the ROC curve: 0.5 by chance, less where the score has it the wrong
      way round; `auprc`, average precision: M / (N + M) by chance; `fpr80`, the part of the known
      images that are taken for others where 80% of the others are found; `other_is`, "high" or
      "low".

    Raises:
      ValueError: a score is not finite, or scikit-learn is not installed.
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
    """`measure` of each score in nats, by name; bits per dimension rank images the same way."""
    return {name: measure(known[name], other[name], name) for name in nats(known)}


def nats(scores: Mapping[str, np.ndarray]) -> list[str]:
    """The names of those scores that are in nats."""
    return [name for name in scores if not name.endswith("bits_per_dim")]
