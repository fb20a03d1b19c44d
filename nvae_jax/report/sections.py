"""The sections of a report, each from what was found to HTML."""

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
    """The model, and its most important numbers."""
    config, state = run_directory.load_config(run.workdir), run.state
    height, width, channels = run.experiment.image_shape
    count = sum(array.size for array in by_name(state.collections["params"]).values())
    kind = "binarised" if config.data.binarize else f"{config.data.num_bits} bits a value"
    rows = [
        ["data", f"{config.data.name}, {height}×{width}×{channels}, {kind}"],
        ["latents", latents(run.experiment)],
        ["parameters", f"{count:,}"],
        ["step", f"{state.step:,} of {config.train.num_steps:,}"],
        ["batch", f"{config.train.batch_size} images a step"],
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
        f"{last['rate']:.2f}, of the first {found.latents['num_examples']:,} images of "
        f"{found.latents['split']!r} (one draw an image)."
    )
    return [page.paragraph(text)]


def curves(found: Findings, charts: Any) -> str:
    """The metrics of training."""
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
        "Draws of the prior, the same noise everywhere. Recalibrated: batch-norm statistics are "
        "those of samples at this temperature, not those of training."
    )
    return page.section("samples", "Samples", page.paragraph(text, quiet=True), *rows)


def reconstructions(run: Run, found: Findings) -> str:
    """Images beside what parts of their latents say of them."""
    if not found.reconstructions:
        return _missing("reconstructions", "Reconstructions by scale", found)
    images, groups, copies = found.reconstructions
    rows = np.concatenate([images[None], copies])
    hierarchy = run.experiment.model.hierarchy
    sizes = [hierarchy.size(scale) for scale in reversed(range(hierarchy.num_scales))]
    text = "From top to bottom: images; then what becomes of none of an image's latents"
    text += "".join(f", of those to {size}×{size}" for size in sizes[:-1])
    text += f" and of all ({groups[-1]} groups), where the others are drawn from the prior."
    grid = page.grid(rows.reshape(-1, *rows.shape[2:]), text, len(images), wide=True)
    return page.section("reconstructions", "Reconstructions by scale", grid)


def latent_groups(found: Findings, charts: Any) -> str:
    """KL and active units by group, rate and distortion, and what the prior does not know."""
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
        "<h3>Why samples can be bad while reconstructions are good</h3>",
        page.paragraph(_sentence(analyze.explain_gap(summary))),
        page.chart(charts.to_svg(charts.draw_prior_gap(summary, points)), "prior-posterior gap"),
        page.paragraph(GAP, quiet=True),
    )


GAP = (
    "Left: of the KL of each group, at least the red part says nothing about the image: the "
    "posteriors of all images together are not where the prior draws (in means, variances and "
    "correlations of channels; other dependences are not seen). Right: the Fréchet distance "
    "to the data of images whose first groups come from the posterior and the others from the "
    "prior: on the left end samples, on the right end reconstructions (without recalibration, at "
    "temperature 1)."
)


def _sentence(text):
    return f"{text[0].upper()}{text[1:]}."


def neighbours(found: Findings, settings: Settings) -> str:
    """The training images nearest to samples."""
    title = "Nearest training images"
    if not found.neighbours:
        return _missing("neighbours", title, found)
    images, columns, medians = found.neighbours
    temperature = min(settings.temperatures)
    caption = (
        f"Left: recalibrated samples at temperature {temperature:g}, each beside the "
        f"{NEIGHBOURS} training images nearest to it. Right: the same for held-out images."
    )
    distances = ", ".join(f"{value:.4f} of {name}" for name, value in medians.items())
    text = (
        f"Median distance to the nearest training image (root mean square difference): "
        f"{distances}. A model that copies has samples much nearer than held-out images, which "
        "cannot have been copied."
    )
    grid = page.grid(images, caption, columns, wide=True)
    return page.section("neighbours", title, page.paragraph(text), grid)


def scores(found: Findings, charts: Any) -> str:
    """Results of evaluation, and scores of training images beside those of held-out ones."""
    rows = [
        [r["split"], r["num_examples"], r["num_iw_samples"], r["nelbo"], r["neg_log_p"]]
        + [r.get("bits_per_dim", r.get("density_bits_per_dim", float("nan")))]
        for r in found.results
    ]
    header = ["split", "images", "K", "NELBO, nats", "−log p, nats", "bits/dim"]
    text = "These weights have not been evaluated: nvae-jax evaluate writes what stands here."
    body = page.table(header, rows) if rows else page.paragraph(text)
    return page.section("scores", "Scores", body, *_of_images(found, charts))


def _of_images(found, charts):
    """Scores of single images."""
    if not found.scores:
        return [_none(found.missing.get("scores", "it was not asked for"))]
    first = next(iter(found.scores.values()))
    names = [name for name in first if "bits_per_dim" not in name]
    rows = [[name, *(float(s[name].mean()) for s in found.scores.values())] for name in names]
    count = len(first["elbo"])
    text = (
        f"Means over the first {count:,} images of each split, in nats, one draw an image: ELBO, "
        "KL by scale (0 is the finest), the bound with the coarse latents of the image alone, and "
        "the likelihood ratio. A training split far above the held-out one speaks of overfitting."
    )
    chart = page.chart(charts.to_svg(charts.draw_scores(found.scores)), "ELBO of single images")
    return [page.paragraph(text), page.table(["score", *found.scores], rows), chart]


def config(run: Run) -> str:
    """What differs from the defaults, and the whole config."""
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
    """What the report was made with."""
    rows = [["nvae_jax", __version__], ["Python", platform.python_version()]]
    rows += [[name, importlib.metadata.version(name)] for name in PACKAGES]
    devices = sorted({device.device_kind for device in jax.devices()})
    rows.append(["devices", f"{jax.device_count()} × {', '.join(devices)}"])
    rows.append(["system", f"{platform.system()} {platform.machine()}"])
    text = "Of this report; training may have had others."
    return page.section(
        "versions", "Versions", page.paragraph(text, True), page.table(["", ""], rows)
    )


def _missing(name, title, found: Findings):
    return page.section(name, title, _none(found.missing.get(name, "it was not asked for")))


def _none(reason):
    return page.paragraph(f"Not here: {reason}.", quiet=True)
