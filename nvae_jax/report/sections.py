"""The sections of a report as HTML."""

import importlib.metadata
import json
import platform
from typing import Any

import jax
import numpy as np

from nvae_jax import __version__, analyze, history, run_directory, schema
from nvae_jax.api import Run
from nvae_jax.hub.card import latents
from nvae_jax.report import page
from nvae_jax.report.measure import NEIGHBOURS, Findings, Settings
from nvae_jax.trees import by_name

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")


def overview(run: Run, found: Findings) -> str:
    """Describes the model, with its most important numbers."""
    config, state = run_directory.load_config(run.workdir), run.state
    height, width, channels = run.experiment.image_shape
    count = sum(array.size for array in by_name(state.collections["params"]).values())
    kind = "binarised" if config.data.binarize else f"{config.data.num_bits} bits a value"
    rows = [
        ["data", f"{config.data.name}, {height}×{width}×{channels}, {kind}"],
        ["latents", latents(run.experiment)],
        ["parameters", f"{count:,}"],
        ["step", f"{state.step:,} of {config.train.num_steps:,}"],
        ["batch", f"{config.train.batch_size} images per step"],
        ["weights", state.fingerprint],
    ]
    return page.section("overview", "Model", page.table(["", ""], rows), *_headline(found))


def _headline(found):
    if not found.latents:
        return []
    last = found.latents["rate_distortion"][-1]
    bound = last["rate"] + last["reconstruction"]
    text = (
        f"NELBO {bound:.2f} nats = reconstruction {last['reconstruction']:.2f} + KL "
        f"{last['rate']:.2f}, for the first {found.latents['num_examples']:,} images of "
        f"{found.latents['split']!r} (one draw per image)."
    )
    return [page.paragraph(text)]


def curves(found: Findings, charts: Any) -> str:
    """Training metrics over the steps."""
    if not found.metrics:
        return page.section("training", "Training", _none("the run has no metrics.jsonl"))
    parts = [page.chart(charts.to_svg(figure), text) for text, figure in _curves(found, charts)]
    return page.section("training", "Training", *parts)


def _curves(found, charts):
    yield "bounds and objective over training", charts.draw_curves(found.metrics)
    if history.numbered(dict(found.metrics), "train/kl_group"):
        yield "KL by group and active units over training", charts.draw_training(found.metrics)


def samples(found: Findings) -> str:
    """Samples at each temperature, without and with recalibration."""
    rows = []
    for recalibrated, title in ((True, "recalibrated"), (False, "not recalibrated")):
        drawn = {t: images for (t, key), images in found.samples.items() if key == recalibrated}
        figures = [page.grid(drawn[t], f"temperature {t:g}, {title}") for t in drawn]
        rows.append(page.row(*figures))
    text = (
        "Samples from the prior, all from the same noise. Recalibrated: the batch-norm statistics "
        "were computed on samples at this temperature, and are not the ones of training."
    )
    return page.section("samples", "Samples", page.paragraph(text, quiet=True), *rows)


def reconstructions(run: Run, found: Findings) -> str:
    """Images, and their reconstructions from a part of their latents."""
    if not found.reconstructions:
        return _missing("reconstructions", "Reconstructions by scale", found)
    images, groups, copies = found.reconstructions
    rows = np.concatenate([images[None], copies])
    hierarchy = run.experiment.model.hierarchy
    sizes = [hierarchy.size(scale) for scale in reversed(range(hierarchy.num_scales))]
    text = "From top to bottom: images; then their reconstructions from none of their latents"
    text += "".join(f", from those up to {size}×{size}" for size in sizes[:-1])
    text += f" and from all ({groups[-1]} groups). The other latents are drawn from the prior."
    grid = page.grid(rows.reshape(-1, *rows.shape[2:]), text, len(images), wide=True)
    return page.section("reconstructions", "Reconstructions by scale", grid)


def latent_groups(found: Findings, charts: Any) -> str:
    """KL and active units by group, rate and distortion, and the prior-posterior gap."""
    if not (summary := found.latents):
        return _missing("latents", "Latents", found)
    rows = [
        [f"{s['size']}×{s['size']}", s["num_groups"], s["kl"], s["kl_bits_per_dim"]]
        + [f"{s['active_units']} of {s['units']}", f"{s['used_variables']:,} of {s['variables']:,}"]
        + [s["prior_gap"]]
        for s in summary["scales"]
    ]
    header = ["scale", "groups", "KL, nats", "bits/dim", "active units", "variables in use"]
    points = summary["rate_distortion"]
    return page.section(
        "latents",
        "Latents",
        page.table([*header, "prior mismatch, nats (at least)"], rows),
        page.chart(charts.to_svg(charts.draw(summary)), "KL, active units and rate"),
        page.chart(charts.to_svg(charts.draw_rate_distortion(points)), "rate and distortion"),
        "<h3>Why samples can be bad although reconstructions are good</h3>",
        page.paragraph(_sentence(analyze.explain_gap(summary))),
        page.chart(charts.to_svg(charts.draw_prior_gap(summary, points)), "prior-posterior gap"),
        page.paragraph(GAP, quiet=True),
    )


GAP = (
    "Left: at least the red part of the KL of each group carries no information about the image, "
    "because the mean posterior of all images differs from the prior (in means, variances and "
    "correlations of channels; other dependences are not measured). Right: the Fréchet distance "
    "to the data of images whose first groups come from the posterior and the others from the "
    "prior: samples on the left, reconstructions on the right (without recalibration, at "
    "temperature 1)."
)


def _sentence(text):
    return f"{text[0].upper()}{text[1:]}."


def neighbours(found: Findings, settings: Settings) -> str:
    """Samples with the training images nearest to them."""
    title = "Nearest training images"
    if not found.neighbours:
        return _missing("neighbours", title, found)
    images, columns, medians = found.neighbours
    temperature = min(settings.temperatures)
    caption = (
        f"Left: recalibrated samples at temperature {temperature:g}, each followed by its "
        f"{NEIGHBOURS} nearest training images. Right: the same for held-out images."
    )
    distances = ", ".join(f"{value:.4f} for {name}" for name, value in medians.items())
    text = (
        f"Median distance to the nearest training image (root mean square difference): "
        f"{distances}. If a model copies training images, its samples are much nearer to them than "
        "held-out images, which it cannot have copied."
    )
    grid = page.grid(images, caption, columns, wide=True)
    return page.section("neighbours", title, page.paragraph(text), grid)


def scores(found: Findings, charts: Any) -> str:
    """Results of evaluation, and the scores of training and held-out images side by side."""
    rows = [
        [r["split"], r["num_examples"], r["num_iw_samples"], r["nelbo"], r["neg_log_p"]]
        + [r.get("bits_per_dim", r.get("density_bits_per_dim", float("nan")))]
        for r in found.results
    ]
    header = ["split", "images", "K", "NELBO, nats", "−log p, nats", "bits/dim"]
    text = "These weights have not been evaluated: nvae-jax evaluate writes the results shown here."
    body = page.table(header, rows) if rows else page.paragraph(text)
    return page.section("scores", "Scores", body, *_of_images(found, charts))


def _of_images(found, charts):
    """Mean scores of images in each split, and a chart of the ELBO of single images."""
    if not found.scores:
        return [_none(found.missing.get("scores", "it was not requested"))]
    first = next(iter(found.scores.values()))
    names = [name for name in first if "bits_per_dim" not in name]
    rows = [[name, *(float(s[name].mean()) for s in found.scores.values())] for name in names]
    count = len(first["elbo"])
    text = (
        f"Means over the first {count:,} images of each split, in nats, one draw per image: ELBO, "
        "KL by scale (0 is the finest), the bound with only the coarse latents of the image, and "
        "the likelihood ratio. An ELBO much higher on training images is a sign of overfitting."
    )
    chart = page.chart(charts.to_svg(charts.draw_scores(found.scores)), "ELBO of single images")
    return [page.paragraph(text), page.table(["score", *found.scores], rows), chart]


def config(run: Run) -> str:
    """The values that differ from the defaults, and the whole config."""
    whole = run_directory.load_config(run.workdir)
    flat = schema.flatten(whole)
    changed = {key: value for key, value in flat.items() if value != schema.DEFAULTS[key]}
    rows = [[key, repr(value), repr(schema.DEFAULTS[key])] for key, value in changed.items()]
    text = json.dumps(whole.to_dict(), indent=2, sort_keys=True)
    return page.section(
        "config",
        "Config",
        page.table(["key", "value", "default"], rows),
        page.details("the whole config", text),
    )


def versions() -> str:
    """The versions and devices that the report was made with."""
    rows = [["nvae_jax", __version__], ["Python", platform.python_version()]]
    rows += [[name, importlib.metadata.version(name)] for name in PACKAGES]
    devices = sorted({device.device_kind for device in jax.devices()})
    rows.append(["devices", f"{jax.device_count()} × {', '.join(devices)}"])
    rows.append(["system", f"{platform.system()} {platform.machine()}"])
    text = "Used for this report; training may have used others."
    return page.section(
        "versions", "Versions", page.paragraph(text, True), page.table(["", ""], rows)
    )


def _missing(name, title, found: Findings):
    return page.section(name, title, _none(found.missing.get(name, "it was not requested")))


def _none(reason):
    return page.paragraph(f"Not available: {reason}.", quiet=True)
