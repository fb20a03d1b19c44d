"""Charts of the results of `analyze`, and of metrics over training."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nvae_jax import history
from nvae_jax.history import Series

GROUP, NATS = "group, coarsest first", "nats per image"


def draw(summary: Mapping[str, Any]) -> Figure:
    """Draws KL by group, active units by group and rate by scale.

    Args:
      summary: the result of `analyze.summarize`.
    """
    groups, scales = summary["groups"], summary["scales"]
    colours = [f"C{group['scale']}" for group in groups]
    figure, (left, middle, right) = _figure(3)
    numbers = [group["group"] for group in groups]
    left.bar(numbers, [group["kl"] for group in groups], color=colours)
    left.set(title="KL by group", xlabel=GROUP, ylabel=NATS)
    fractions = [100 * group["active_units"] / group["units"] for group in groups]
    middle.bar(numbers, fractions, color=colours)
    middle.set(title="active units", xlabel=GROUP, ylabel="%", ylim=(0, 100))
    names = [f"{scale['size']}×{scale['size']}" for scale in scales]
    rates = [scale["kl_bits_per_dim"] for scale in scales]
    right.bar(names, rates, width=0.5, color=[f"C{scale['scale']}" for scale in scales])
    right.set(title="rate by scale", xlabel="latent resolution", ylabel="bits per dimension")
    return figure


def draw_curves(metrics: Mapping[str, Series]) -> Figure:
    """Draws the NELBO, its two terms, and gradient norm and learning rate over training.

    Args:
      metrics: the result of `history.read`.
    """
    figure, (left, middle, right) = _figure(3)
    lines = {"train/nelbo": "training"}
    lines |= {n: n.partition("/")[0] for n in metrics if re.fullmatch("(validation|test)/nelbo", n)}
    for name, label in lines.items():
        if name in metrics:
            left.plot(*metrics[name], "o-" if len(metrics[name][0]) == 1 else "-", label=label)
    _limit_to_later_values(left)
    left.set(title="NELBO", xlabel="step", ylabel=NATS)
    for name in ("reconstruction", "kl"):
        if f"train/{name}" in metrics:
            middle.plot(*metrics[f"train/{name}"], label=name)
    _limit_to_later_values(middle)
    middle.set(title="its two terms", xlabel="step", ylabel=NATS)
    for axes, name in ((right, "gradient_norm"), (right.twinx(), "learning_rate")):
        colour = "C0" if axes is right else "C1"
        axes.plot(*metrics.get(f"train/{name}", ([], [])), color=colour)
        axes.set_ylabel(name.replace("_", " "), color=colour)
    right.set(title="optimisation", xlabel="step")
    left.legend(fontsize=8)
    middle.legend(fontsize=8)
    return figure


def _limit_to_later_values(axes):
    """Cuts off the values of the first steps, which are many times larger than later ones."""
    values = [line.get_ydata() for line in axes.get_lines() if len(line.get_ydata()) > 10]
    if values:
        bottom, top = min(map(np.min, values)), max(np.quantile(v, 0.9) for v in values)
        margin = 0.15 * (top - bottom) or 1.0
        axes.set_ylim(bottom - margin, top + margin)


def draw_training(metrics: Mapping[str, Series]) -> Figure:
    """Draws KL by group and active units over training; the coarsest group is the darkest.

    Args:
      metrics: the result of `history.read`.
    """
    figure, (left, right) = _figure(2)
    kl = history.numbered(dict(metrics), "train/kl_group")
    for number, (steps, values) in enumerate(kl):
        colour = colormaps["viridis"](number / max(len(kl) - 1, 1))
        named = number in (0, len(kl) - 1) or len(kl) <= 10
        left.plot(steps, values, color=colour, label=f"group {number}" if named else None)
    left.set(title="KL by group over training", xlabel="step", ylabel=NATS)
    left.set_yscale("symlog", linthresh=0.1)
    if kl:
        left.legend(fontsize=7, ncols=2)
    steps, values = metrics.get("train/active_units", (np.array([]), np.array([])))
    right.plot(steps, values, color="C0")
    right.set(title="active units over training", xlabel="step", ylabel="units", ylim=(0, None))
    return figure


def draw_rate_distortion(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws distortion against rate, with large dots where whole scales come from the posterior.

    Args:
      points: the result of `rate_distortion.measure`.
    """
    figure, (left, right) = _figure(2)
    _curve(left, points, "rate", "reconstruction")
    left.set(title="rate and distortion", xlabel="rate: KL, nats", ylabel="−log p(x|z), nats")
    _curve(right, points, "rate_bits_per_dim", "rmse")
    right.set(
        title="rate and error of the mean",
        xlabel="rate, bits per dimension",
        ylabel="root mean square error",
    )
    return figure


def _curve(axes: Axes, points, x, y):
    axes.plot([p[x] for p in points], [p[y] for p in points], "o-", ms=3, color="C7")
    for point in points:
        if point["whole_scales"] is not None:
            axes.plot(point[x], point[y], "o", ms=8, color=f"C{point['whole_scales']}")
            count = point["whole_scales"]
            text = f"{count} scale{'' if count == 1 else 's'}" if count else "no latents"
            axes.annotate(
                text, (point[x], point[y]), textcoords="offset points", xytext=(7, 5), fontsize=8
            )
    axes.margins(0.12)


def draw_prior_gap(summary: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws each group's KL with its part due to prior mismatch, and the Fréchet distance to the
    data by the number of groups from the posterior.

    Args:
      summary: the result of `analyze.summarize`.
      points: the result of `rate_distortion.measure`.
    """
    groups = summary["groups"]
    figure, (left, right) = _figure(2)
    numbers = [group["group"] for group in groups]
    left.bar(numbers, [group["kl"] for group in groups], color="C7", label="KL")
    gaps = [group["prior_gap"] for group in groups]
    left.bar(numbers, gaps, color="C3", label="prior mismatch (at least)")
    left.set(title="prior–posterior gap by group", xlabel=GROUP, ylabel=NATS)
    left.legend(fontsize=8)
    counts = [p["groups"] for p in points]
    right.plot(counts, [p["frechet"] for p in points], "o-", color="C3", ms=4)
    right.set(
        title="from samples to reconstructions",
        xlabel="groups from the posterior, the others from the prior",
        ylabel="Fréchet distance to the images",
        ylim=(0, None),
    )
    return figure


def draw_scores(scores: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws histograms of the ELBO and the likelihood ratio of single images.

    Args:
      scores: {name of the split: result of `scores.score`}.
    """
    ratios = [name for name in next(iter(scores.values())) if re.fullmatch(r"llr_gt_\d+", name)]
    names = ["elbo", *ratios[-1:]]
    figure, axes = _figure(2)
    for each, name in zip(axes, names, strict=False):
        low = min(values[name].min() for values in scores.values())
        high = max(values[name].max() for values in scores.values())
        for split, values in scores.items():
            each.hist(values[name], np.linspace(low, high, 31), alpha=0.5, label=split)
        each.set(title=name, xlabel="nats", ylabel="images")
        each.legend(fontsize=8)
    for each in axes[len(names) :]:
        each.set_axis_off()
    return figure


def _figure(columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(10, 3.2), dpi=80, layout="constrained")
    axes: Any = figure.subplots(1, columns)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def rasterize(figure: Figure) -> np.ndarray:
    """Renders a figure to pixels, uint8 (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def to_svg(figure: Figure) -> str:
    """Renders a figure to SVG; equal figures give equal text."""
    file = io.StringIO()
    with rc_context({"svg.hashsalt": "nvae_jax"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
