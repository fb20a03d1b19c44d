"""The page about a run is one complete file, and shows what was measured."""

import dataclasses
import html.parser
import json
import re
import shutil

import numpy as np
import pytest

from nvae_jax import outputs
from nvae_jax.report import measure, page
from nvae_jax.report.write import report_run

SETTINGS = measure.Settings(max_examples=9, temperatures=(1.0, 0.7), num=4, passes=1, nearest=False)
EMPTY = {"meta", "img", "br"}  # elements without an end tag


class Parser(html.parser.HTMLParser):
    """Collects the elements of a page, and faults of their nesting."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.faults = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open += [] if tag in EMPTY else [tag]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def own(run, tmp_path_factory):
    """A copy of the run with metrics and results."""
    folder = tmp_path_factory.mktemp("report") / "run"
    folder.mkdir()
    shutil.copy(run.workdir / "config.json", folder)
    terms = {"train/nelbo": 50.0, "train/kl": 9.0, "train/reconstruction": 41.0}
    terms |= {f"train/kl_group_{i:02d}": 2.0 for i in range(4)} | {"train/active_units": 3}
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, **terms}))
    (folder / "eval").mkdir()
    result = {"split": "test", "num_examples": 297, "num_iw_samples": 10, "nelbo": 123.25}
    result |= {"neg_log_p": 122.5, "bits_per_dim": 0.69, "weights": run.state.fingerprint}
    (folder / "eval" / "a.json").write_text(json.dumps(result))
    (folder / "eval" / "b.json").write_text(json.dumps({**result, "nelbo": 77, "weights": "no"}))
    return dataclasses.replace(run, workdir=folder)


@pytest.fixture(scope="module")
def written(own):
    """(path of its report, the measurements in it)."""
    found, path = [], own.workdir / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        original = measure.measure
        spied = lambda *args: found.append(original(*args)) or found[-1]  # noqa: E731
        patch.setattr("nvae_jax.report.write.measure", spied)
        report_run(own, path, SETTINGS)
    return path, found[0]


def test_the_page_is_valid_html_without_external_files(written):
    text = written[0].read_text()
    parser = Parser(text)
    assert not parser.faults and not parser.open
    assert all(image["src"].startswith("data:image/") for image in parser.all("img"))
    assert not parser.all("link") and not re.search(r"(src|href)=.?https?:|@import|url\(", text)
    sections = [section["id"] for section in parser.all("section")]
    assert sections == ["overview", "training", "samples", "reconstructions", "latents"] + [
        "neighbours",
        "scores",
        "config",
        "versions",
    ]
    assert {link["href"][1:] for link in parser.all("a")} <= set(sections)


def test_the_page_shows_what_was_measured(written, own):
    text, found = written[0].read_text(), written[1]
    assert "123.2" in text and "77" not in re.sub(r"data:[^\"]*", "", text).split("Config")[0]
    for temperature in ("1", "0.7"):
        for kind in ("recalibrated", "not recalibrated"):
            assert text.count(f"temperature {temperature}, {kind}</figcaption>") == 1
    last = found.latents["rate_distortion"][-1]
    assert f"NELBO {last['rate'] + last['reconstruction']:.2f} nats" in text
    assert "Why samples can be bad" in text and "mismatch of the prior" in text
    assert found.scores.keys() == {"train", "test"}
    assert f"{found.scores['train']['elbo'].mean():,.2f}" in text
    assert own.state.fingerprint in text and "num_scales" in text and "jaxlib" in text
    assert "it was not requested" in text  # the neighbours


def test_the_samples_equal_those_of_the_run(written, own):
    drawn = written[1].samples
    np.testing.assert_array_equal(drawn[0.7, False], own.sample(4, temperature=0.7))
    again = own.recalibrated(0.7, passes=1).sample(4, temperature=0.7)
    np.testing.assert_array_equal(drawn[0.7, True], again)


def test_another_report_is_not_overwritten(written, own):
    with pytest.raises(ValueError, match="holds another result: num is 4 in the file and 5 now"):
        report_run(own, written[0], dataclasses.replace(SETTINGS, num=5))
    with pytest.raises(ValueError, match="must end in .html"):
        report_run(own, own.workdir / "report.pdf", SETTINGS)
    with pytest.raises(ValueError, match="split must be one of train, validation, test, not 'x'"):
        report_run(own, written[0], dataclasses.replace(SETTINGS, split="x"))
    metadata = own.metadata(num=4)
    outputs.check([written[0]], metadata)


def test_neighbours_of_samples_and_test_images_are_shown(own, written):
    settings = dataclasses.replace(SETTINGS, nearest=True)
    pictures, columns, medians = measure._neighbours(own, settings, written[1].samples)
    assert columns == 2 * (1 + measure.NEIGHBOURS) + 1 and len(pictures) == 4 * columns
    assert medians.keys() == {"samples", "test images"}


def test_the_page_says_which_data_are_missing(own, monkeypatch, written):
    def no_data(*_, **__):
        raise ValueError("no data\nanywhere")

    for name in ("_latents", "_reconstructions", "_scores"):
        monkeypatch.setattr(measure, name, no_data)
    monkeypatch.setattr(measure, "draw_samples", lambda *_: written[1].samples)
    path = own.workdir / "without.html"
    report_run(own, path, SETTINGS)
    text = path.read_text()
    assert text.count("Not available: no data.") == 3 and "temperature 0.7, recalibrated" in text


def test_texts_are_escaped():
    rows = [["<b>", 1234, 0.5]]
    text = page.frame("<i>", page.table(["<u>", "", ""], rows), {"name": "</script><b>"})
    assert "<b>" not in text and "<i>" not in text and "<u>" not in text
    assert "1,234" in text and not Parser(text).faults


@pytest.mark.parametrize(("channels", "kind"), [(1, "png"), (3, "webp")])
def test_large_pictures_are_compressed(channels, kind):
    images = np.random.default_rng(0).random((4, 200, 300, channels))
    text = page.grid(images, "a caption")
    assert f"data:image/{kind};base64," in text and len(text) < 300_000
