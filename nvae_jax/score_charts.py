"""The scores of two sets of images, as histograms."""

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
    """A histogram of every score in `detection`, both sets in each: uint8 (H, W, 3).

    Args:
      sets: {name of the set: {name of the score: (N,) nats}}.
      detection: of `detection.measure_all`.
    """
    rows = -(-len(detection) // COLUMNS)
    figure = Figure(figsize=(10, 2.6 * rows), dpi=80, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axis, (score, found) in zip(axes, detection.items(), strict=False):
        values = {name: scores[score] for name, scores in sets.items()}
        bins = np.histogram_bin_edges(np.concatenate(list(values.values())), BINS)
        for name, those in values.items():
            axis.hist(those, bins, density=True, alpha=0.6, label=name)
        title = f"{score}: AUROC {found['auroc']:.3f}"
        axis.set(title=title, xlabel="nats per image", yticks=[])
    for axis in axes:
        axis.set_axis_off()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return rasterize(figure)
