"""What `analyze` found, as bar charts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(summary: Mapping[str, Any]) -> np.ndarray:
    """KL by group, active units by group and rate by scale, of `analyze.summarize`: uint8
    (H, W, 3)."""
    groups, scales = summary["groups"], summary["scales"]
    colours = [f"C{group['scale']}" for group in groups]
    figure = Figure(figsize=(10, 3.2), dpi=80, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    numbers = [group["group"] for group in groups]
    left.bar(numbers, [group["kl"] for group in groups], color=colours)
    left.set(title="KL by group", xlabel="group, coarsest first", ylabel="nats per image")
    fractions = [100 * group["active_units"] / group["units"] for group in groups]
    middle.bar(numbers, fractions, color=colours)
    middle.set(title="active units", xlabel="group, coarsest first", ylabel="%", ylim=(0, 100))
    names = [f"{scale['size']}×{scale['size']}" for scale in scales]
    rates = [scale["kl_bits_per_dim"] for scale in scales]
    right.bar(names, rates, color=[f"C{scale['scale']}" for scale in scales])
    right.set(title="rate by scale", xlabel="latent resolution", ylabel="bits per dimension")
    return _rasterize(figure)


def _rasterize(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
