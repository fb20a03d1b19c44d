"""The page in a real Chromium, used like a person does. The run is real, but its model is replaced,
so that nothing is compiled."""

import contextlib
import dataclasses
import io
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from nvae_jax import api, encode
from nvae_jax.explore import server
from nvae_jax.explore.explorer import Explorer
from nvae_jax.explore.jobs import Jobs

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `test`)")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt install chromium")

MILLISECONDS = 60_000
PICTURE = "#{} .pictures:not(.stale) button"


class Sketch(api.Run):
    """A run whose pictures are its noise, as grey values."""

    def compose(self, sources, temperatures, *, images=None, latents=(), num=None, seed=0):
        scaled = [t * z.reshape(len(z), -1) for t, z in zip(temperatures, latents, strict=True)]
        values = np.concatenate(scaled, axis=1)
        drawn = np.stack([np.resize(row, (16, 16, 1)) for row in values])
        drawn = drawn if images is None else drawn + images
        return 1 / (1 + np.exp(-drawn)), list(latents), list(latents)

    def draw_noise(self, num, seed=0):
        rng = np.random.default_rng(seed)
        return [rng.normal(size=(num, *shape)) for shape in self.latent_shapes]

    def recalibrated(self, temperature=1.0, passes=None, method="pooled", **options):
        for _ in options["progress"](range(3)):
            pass
        return dataclasses.replace(self, recalibration=f"at {temperature}")


class SketchExplorer(Explorer):
    """An explorer that computes no KL."""

    def _divergence(self, images):
        return [float(images.mean())] * self.run.num_groups


@pytest.fixture(scope="module")
def explorer(run):
    fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    return SketchExplorer(Sketch(**{**fields, "batch_size": 6}))


@pytest.fixture(scope="module")
def jobs():
    jobs = Jobs()
    yield jobs
    jobs.close()


@pytest.fixture(scope="module")
def url(explorer, jobs):
    """The address of the page of the tiny run, which is served until the end of this file."""
    app = server.Server(server.make_app(explorer, jobs), jobs)
    with server.listen(0) as listening:
        thread = threading.Thread(target=app.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        app.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, url):
    """A function that opens the page in a new window; an error in a script fails the test."""
    errors = []
    with contextlib.ExitStack() as closing:

        def open_page(width=1280, height=900, **options):
            context = browser.new_context(viewport={"width": width, "height": height}, **options)
            closing.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(MILLISECONDS)
            page.on("pageerror", lambda error: errors.append(error))
            page.goto(url)
            return page

        yield open_page
    assert not errors


@pytest.fixture
def page(open_page):
    return open_page()


def pictures(page, card):
    """Waits for the PNGs of a card."""
    images = PICTURE.format(card) + " img"
    while True:  # all at the same time
        page.wait_for_selector(images)
        found = page.eval_on_selector_all(images, "images => images.map((image) => image.src)")
        if found:
            return found


def changed(page, card, old):
    """Waits until the PNGs of a card differ from `old`."""
    for _ in range(MILLISECONDS // 50):
        if (new := pictures(page, card)) != old:
            return new
        page.wait_for_timeout(50)
    raise AssertionError(f"{card} stays as it is")


def status(page, card, text):
    """Waits until the status of a card contains `text`."""
    page.locator(f"#{card} .status", has_text=text).wait_for()


def choose(page, number):
    page.click(f"#samples [aria-label='sample {number}']")
    for card in ("redraw", "keep"):
        assert len(pictures(page, card)) == 6
    page.wait_for_selector("#divergence table:not([hidden])")


def png(folder, size=(40, 20), name="mine.png"):
    path = folder / name
    Image.fromarray(np.full(size[::-1], 200, np.uint8)).save(path)
    return path


def test_every_part_works_with_the_mouse(page):
    samples = pictures(page, "samples")
    assert len(set(samples)) == 6 and page.title() == "tiny · nvae-jax explore"
    choose(page, 2)
    assert page.get_attribute("#preview", "src") == samples[2]
    assert page.locator("#divergence tbody tr").count() == 4
    variations = pictures(page, "redraw")
    page.click("#redraw .again")
    changed(page, "redraw", variations)
    page.click("#as-start")
    page.click("#samples [aria-label='sample 4']")
    page.click("#as-end")
    assert len(set(pictures(page, "interpolate"))) > 3
    page.fill("#seed", "1")
    changed(page, "samples", samples)


def test_every_part_works_with_the_keyboard(page):
    samples = pictures(page, "samples")
    reached = set()
    page.focus("#seed")
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if page.evaluate("Boolean(document.activeElement.closest('.pictures'))"):
            break
    assert {"next-seed", "INPUT", "recalibrate"} <= reached
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.get_attribute("#preview", "src") == samples[1]
    assert page.get_attribute("#samples [aria-label='sample 1']", "aria-pressed") == "true"
    page.focus("#groups")
    kept = pictures(page, "keep")
    page.keyboard.press("End")
    changed(page, "keep", kept)
    assert page.get_attribute("#groups", "aria-valuetext") == "4 of 4"
    assert len(set(pictures(page, "keep"))) == 1  # nothing is drawn


def test_recalibration_and_a_temperature_for_each_scale_can_be_chosen(page):
    before = pictures(page, "samples")
    assert page.locator("#temperatures input").count() == 2
    page.uncheck("#together")
    page.focus("#temperatures label:nth-child(2) input")
    page.keyboard.press("ArrowRight")
    assert page.locator("#temperatures output").all_inner_texts() == ["0.70", "0.75"]
    page.check("#recalibrate")
    changed(page, "samples", before)
    assert len(pictures(page, "samples")) == 6


def test_an_image_can_be_uploaded_and_wrong_files_are_refused(page, tmp_path):
    page.set_input_files("#file", png(tmp_path))
    pictures(page, "keep")
    label = "mine.png (40×20, cropped to a square and resized to 16×16)"
    assert page.inner_text("#chosen-label") == label
    chosen = page.get_attribute("#preview", "src")

    for name, content, complaint in (
        ("text.png", b"no picture", "text.png: the file: not a PNG, JPEG, WebP, BMP or TIFF image"),
        ("empty.png", b"", "empty.png: the file: not a PNG"),
        ("large.png", bytes(2**25 + 1), "large.png: the file is too large: at most 32 MiB"),
    ):
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file", tmp_path / name)
        status(page, "chosen", complaint)
        assert page.get_attribute("#preview", "src") == chosen  # nothing is lost
        assert page.inner_text("#chosen-label") == label
    page.set_input_files("#file", png(tmp_path, (16, 16), "right.png"))
    page.locator("#chosen-label", has_text="right.png").wait_for()
    assert page.inner_text("#chosen .status") == ""


def test_each_window_has_its_own_pictures(open_page):
    one, other = open_page(), open_page()
    first = pictures(one, "samples")
    assert pictures(other, "samples") == first
    other.fill("#seed", "8")
    changed(other, "samples", first)
    one.fill("#seed", "9")
    changed(one, "samples", first)
    assert pictures(one, "samples") != pictures(other, "samples")
    assert (one.input_value("#seed"), other.input_value("#seed")) == ("9", "8")


def test_a_reload_keeps_all_settings_and_pictures(page, tmp_path):
    before = pictures(page, "samples")
    page.fill("#seed", "5")
    samples = changed(page, "samples", before)
    page.click("#samples [aria-label='sample 1']")
    page.click("#as-start")
    page.set_input_files("#file", png(tmp_path))
    page.locator("#chosen-label", has_text="mine.png").wait_for()
    page.click("#as-end")
    way, kept = pictures(page, "interpolate"), pictures(page, "keep")
    page.reload()
    assert pictures(page, "samples") == samples and page.input_value("#seed") == "5"
    assert page.inner_text("#chosen-label").startswith("mine.png")
    assert pictures(page, "interpolate") == way and pictures(page, "keep") == kept


def test_pictures_and_latents_can_be_saved(page, explorer, tmp_path):
    pictures(page, "samples")
    choose(page, 3)
    with page.expect_download() as download:
        page.click("#png")
    assert download.value.suggested_filename == "tiny_samples_3.png"
    assert Image.open(io.BytesIO(download.value.path().read_bytes())).size == (16, 16)
    with page.expect_download() as download:
        page.click("#npz")
    download.value.save_as(tmp_path / "z.npz")
    latents = encode.load_latents(tmp_path / "z.npz")
    assert [z.shape[1:] for z in latents] == list(explorer.run.latent_shapes)


def test_the_page_shows_the_progress_of_compilation(open_page, jobs):
    on, off = threading.Event(), threading.Event()

    def compile_slowly(job):
        for number in job.watch("compiling", range(4)):
            if number == 1:
                on.set()
                off.wait(60)

    jobs.submit("compiling", compile_slowly)
    assert on.wait(60)
    page = open_page()
    page.locator("#working", has_text="compiling: 1 of 4").wait_for()
    assert page.get_attribute("#working progress", "value") == "0.25"
    off.set()
    assert len(pictures(page, "samples")) == 6
    page.locator("#working progress").wait_for(state="hidden")


@pytest.mark.parametrize("width", [320, 700, 1280])
def test_the_page_fits_narrow_windows(open_page, width):
    page = open_page(width)
    pictures(page, "samples")
    choose(page, 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate(
        "[...document.querySelectorAll('button, input, table, select')]"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth).map((e) => e.outerHTML)"
    )
    assert not wide


def test_the_page_shows_errors(page):
    pictures(page, "samples")
    page.fill("#seed", "-1")
    status(page, "samples", "The seed must be a whole number from 0 to 2147483647.")
    page.route("**/api/ask", lambda route: route.abort())
    page.fill("#seed", "12")
    status(page, "samples", "The server does not answer: is nvae-jax explore still running?")
    page.unroute("**/api/ask")
    page.fill("#seed", "13")
    page.wait_for_selector(PICTURE.format("samples"))
    assert page.inner_text("#samples .status") == ""


def test_pages_of_another_origin_get_no_answer(open_page, url, jobs, monkeypatch):
    """The same page at localhost has another origin. Its content security policy, which would
    prevent its requests, is switched off."""
    page = open_page(bypass_csp=True)
    pictures(page, "samples")
    page.goto(url.replace("127.0.0.1", "localhost"))
    pictures(page, "samples")
    asked = []
    monkeypatch.setattr(jobs, "submit", lambda *call: asked.append(call))
    samples = {"kind": "samples", "seed": 0, "temperature": 1, "recalibrate": False}
    message = {"window": "foreign", "request": samples}
    call = """([url, message]) => fetch(
        url, {method: "POST", mode: "no-cors", body: JSON.stringify(message)}
    ).then(() => "answered", () => "refused")"""
    assert page.evaluate(call, [f"{url}api/ask", message]) == "refused"
    assert not asked
