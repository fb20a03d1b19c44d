"""Measures a run and writes its report."""

import datetime
from pathlib import Path
from typing import Any

from nvae_jax import extras, files, outputs, paths
from nvae_jax.api import Run
from nvae_jax.noise import group_temperatures
from nvae_jax.report import page, sections
from nvae_jax.report.measure import Settings, measure

SPLITS = ("train", "validation", "test")
NAMES = ("training", "samples", "reconstructions", "latents", "neighbours", "scores", "config")


def report_run(
    run: Run, out: str | Path, settings: Settings | None = None, *, overwrite: bool = False
) -> None:
    """Writes a single HTML file about a run, with its pictures embedded.

    The page has training curves, samples at each temperature with and without recalibration,
    reconstructions by scale, an analysis of the latents, nearest training images, results of
    evaluation, scores, the config and versions. A section whose data are missing says so.

    Args:
      run: an `api.Run`.
      out: a path that ends in .html.
      settings: None takes the defaults.
      overwrite: whether to replace a page that was made with other settings.

    Raises:
      ValueError: if the file must not be replaced, or a setting is out of range.
    """
    settings, out = settings or Settings(), paths.parse(out)
    charts = extras.load("nvae_jax.latent_charts", "plots", "a report")
    if out.suffix != ".html":
        raise ValueError(f"{out} must end in .html")
    if settings.split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {settings.split!r}")
    for temperature in settings.temperatures:
        group_temperatures(run.experiment.model.hierarchy, temperature)
    metadata = run.metadata(**_described(settings))
    outputs.check([out], metadata, overwrite=overwrite)
    found = measure(run, settings)
    parts = [
        sections.overview(run, found),
        sections.curves(found, charts),
        sections.samples(found),
        sections.reconstructions(run, found),
        sections.latent_groups(found, charts),
        sections.neighbours(found, settings),
        sections.scores(found, charts),
        sections.config(run),
        sections.versions(),
    ]
    title = run.experiment.describe()
    with files.atomic_write(out) as temporary:
        temporary.write_text(page.frame(title, _body(title, parts), metadata), encoding="utf-8")
    print(f"written to {out} ({out.stat().st_size / 1e6:.1f} MB)")


def _described(settings: Settings) -> dict[str, Any]:
    return {
        "split": settings.split,
        "max_examples": settings.max_examples,
        "temperatures": list(settings.temperatures),
        "num": settings.num,
        "nearest": settings.nearest,
        "passes": settings.passes or "config's",
        "seed": settings.seed,
    }


def _body(title, parts):
    now = datetime.datetime.now(datetime.UTC)
    links = "".join(f'<a href="#{name}">{name}</a>' for name in NAMES)
    head = f"<h1>{title}</h1>\n" + page.paragraph(f"{now:%Y-%m-%d %H:%M} UTC", quiet=True)
    return "\n".join([head, f"<nav>{links}</nav>", *parts])
