"""Draws histograms of the scores of two sets of images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nvae_jax.latent_charts import rasterize

BINS = 40
COLUMNS = 3


def draw(
    sets: Mapping[str, Mapping[str, np.ndarray]], detection: Mapping[str, Mapping[str, Any]]
) -> np.ndarray:
    """Draws a histogram of every score in `detection`, with both sets in each.

    Args:
      sets: {name of the set: {name of the score: (N,) in nats}}.
      detection: the result of `detection.measure_all`.

    Returns:
      the chart, uint8 (H, W, 3).
    """
    rows = -(-len(detection) // COLUMNS)
    figure = Figure(figsize=(10, 2.6 * rows), dpi=80, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axis, (score, found) in zip(axes, detection.items(), strict=False):
        values = {name: scores[score] for name, scores in sets.items()}
        bins = np.histogram_bin_edges(np.concatenate(list(values.values())), BINS)
        for name, values_of_set in values.items():
            axis.hist(values_of_set, bins, density=True, alpha=0.6, label=name)
        title = f"{score}: AUROC {found['auroc']:.3f}"
        axis.set(title=title, xlabel="nats per image", yticks=[])
    for axis in axes:
        axis.set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return rasterize(figure)
