"""The HTML of a page in a single file: tables, embedded pictures, and the page around them."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nvae_jax import files, pictures

MAX_SIZE = 128  # pixels per side of each image in a grid: a page must be small enough to mail
MIN_WIDTH = 520  # pixels at which a grid of small images is shown
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff; margin: 0 auto;
  max-width: 1080px; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .6rem;
  border-top: 1px solid #d8dbe0; }
p { max-width: 46rem; }
.quiet { color: #5c6370; font-size: .9rem; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: #1659b7; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid #e7e9ed; }
td.number, th.number { text-align: right; }
.scroll { overflow-x: auto; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-end; }
figure { margin: .8rem 0; max-width: 100%; }
figcaption { font-size: .85rem; color: #5c6370; }
.row figure { flex: 1 1 200px; max-width: 250px; }
img { max-width: 100%; height: auto; }
img.chart { width: 100%; }
img.pixels { image-rendering: pixelated; width: 100%; }
pre { background: #f5f6f8; padding: .8rem; overflow-x: auto; font-size: .85rem; }
@media print {
  body { max-width: none; } h2 { break-after: avoid; } figure { break-inside: avoid; }
}
"""
FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<script type="application/json" id="settings">{settings}</script>
</head>
<body>
{body}
</body>
</html>
"""


def frame(title: str, body: str, settings: Mapping[str, Any]) -> str:
    """The whole page. It contains the settings that made it, which a later call reads."""
    # "</script>" in a string would end the element.
    packed = files.to_json(settings).replace("<", "\\u003c")
    return FRAME.format(title=html.escape(title), style=STYLE, settings=packed, body=body)


def section(name: str, title: str, *parts: str) -> str:
    """A section of the page, with a heading."""
    return (
        f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n' + "\n".join(parts) + "</section>"
    )


def paragraph(text: str, quiet: bool = False) -> str:
    """A paragraph of text, which is escaped; `quiet` ones are smaller and grey."""
    return f"<p{' class=quiet' if quiet else ''}>{html.escape(text)}</p>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; columns of numbers are right-aligned."""
    rows = [list(row) for row in rows]
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    head = "".join(_cell("th", text, number) for text, number in zip(header, numeric, strict=True))
    body = "".join(
        "<tr>" + "".join(_cell("td", v, n) for v, n in zip(row, numeric, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _cell(kind, value, number):
    text = value if isinstance(value, str) else _number(value)
    return f"<{kind}{' class=number' if number else ''}>{html.escape(text)}</{kind}>"


def _number(value):
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if abs(value) >= 10 else f"{value:.4g}"


def details(summary: str, text: str) -> str:
    """Text that is hidden until a click on the summary."""
    summary, text = html.escape(summary), html.escape(text)
    return f"<details><summary>{summary}</summary><pre>{text}</pre></details>"


def chart(svg: str, description: str) -> str:
    """A figure of a chart, given as SVG."""
    source, text = _data("image/svg+xml", svg.encode()), html.escape(description)
    return f'<figure><img class="chart" src="{source}" alt="{text}"></figure>'


def grid(images: np.ndarray, caption: str, columns: int | None = None, wide: bool = False) -> str:
    """Images (N, H, W, C) in [0, 1] as one picture with a caption; `wide` ones fill the width."""
    small = [_shrunk(image) for image in pictures.to_uint8(images)]
    pixels = pictures.image_grid(np.stack(small), columns)
    picture, file = Image.fromarray(pixels), io.BytesIO()
    if images.shape[-1] == 1:  # PNG is smallest for few colours
        picture.convert("L").save(file, "PNG", optimize=True)
        kind = "image/png"
    else:
        picture.save(file, "WEBP", quality=92)
        kind = "image/webp"
    width = max(picture.width, min(MIN_WIDTH, 4 * picture.width))
    style = f' style="max-width: {width}px"' if wide else ""
    return (
        f'<figure{style}><img class="pixels" src="{_data(kind, file.getvalue())}" '
        f'alt="{html.escape(caption)}"><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _shrunk(image):
    if max(image.shape[:2]) <= MAX_SIZE:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((MAX_SIZE, MAX_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


def row(*figures: str) -> str:
    """Figures side by side, wrapped to the width of the window."""
    return '<div class="row">' + "\n".join(figures) + "</div>"


def _data(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
