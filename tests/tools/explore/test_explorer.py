"""The explorer computes the same as the library, with programs that are compiled at the start."""

import base64
import io

import jax
import numpy as np
import pytest
from PIL import Image

from nvae_jax import encode
from nvae_jax.data import images as images_lib
from nvae_jax.explore import explorer as module
from nvae_jax.explore import requests
from nvae_jax.explore.jobs import Job, Superseded

T = (0.7, 0.5)
GROUPS = 4
SAMPLES = requests.Samples(3, T, False)
SAMPLE = requests.Picture(SAMPLES, 2)
PNG = images_lib.encode((np.eye(16) * 255).astype(np.uint8)[..., None])
IMAGE = requests.Picture(requests.Encode(PNG, 1), 0)


def close(one, other, tolerance=2e-4):
    return np.abs(np.asarray(one) - np.asarray(other)).max() <= tolerance


def now(what, items):
    return items


@pytest.fixture(autouse=True)
def nothing_more_is_compiled(explorer, compiled):
    """Fails a test that compiles another program."""
    compiled.clear()
    yield
    assert not compiled


def test_samples_equal_those_of_the_library(explorer, allowing):
    drawn = explorer.draw(SAMPLES)
    assert len(drawn.images) == 6 and explorer.draw(requests.Samples(3, T, False)) is drawn
    with allowing():
        assert close(drawn.images, explorer.run.sample(6, temperature=T, seed=3))
    assert not close(drawn.images, explorer.draw(requests.Samples(4, T, False)).images, 0.1)
    assert not close(
        drawn.images, explorer.draw(requests.Samples(3, (0.7, 1.0), False)).images, 0.1
    )


def test_only_the_given_group_is_redrawn(explorer):
    start = explorer.draw(SAMPLES)
    again = explorer.draw(requests.Redraw(SAMPLE, 1, 9, T))
    assert close(again.images[0], start.images[2])
    for group in range(GROUPS):
        moved = [not close(noise, start.noise[group][2], 1e-2) for noise in again.noise[group]]
        assert moved == [False] + 5 * [group == 1]
    assert close(again.latents[0], np.repeat(start.latents[0][2:3], 6, 0))
    fresh = explorer.run.draw_noise(6, 9)[1]
    assert close(again.noise[1][1:], T[0] * fresh[1:], 1e-2)
    assert not close(again.images[1], again.images[2], 0.05)


def test_the_given_number_of_first_groups_is_kept(explorer):
    image = explorer.draw(IMAGE.request)
    for count in range(GROUPS + 1):
        kept = explorer.draw(requests.Keep(IMAGE, count, 5, T))
        for group in range(GROUPS):
            same = close(kept.latents[group], np.repeat(image.latents[group], 6, 0))
            assert same == (group < count)
    assert close(kept.images, np.repeat(image.images, 6, 0))


def test_an_image_is_encoded_as_the_library_does(explorer, allowing):
    drawn = explorer.draw(IMAGE.request)
    array = np.eye(16, dtype=np.float32)[None, ..., None]
    with allowing():
        latents = explorer.run.encode(array, seed=1)
    assert all(close(ours, z) for ours, z in zip(drawn.latents, latents, strict=True))


def test_interpolation_goes_from_one_picture_to_the_other(explorer):
    way = explorer.draw(requests.Interpolate(SAMPLE, IMAGE)).images
    assert close(way[0], explorer.draw(SAMPLES).images[2], 1e-3)
    assert close(way[-1], explorer.draw(IMAGE.request).images[0], 1e-3)
    assert not close(way[2], way[0], 0.05) and not close(way[3], way[-1], 0.05)


def test_the_kl_of_each_group_equals_that_of_the_model(explorer, allowing):
    answer = explorer.answer(requests.Divergence(IMAGE), now)
    with allowing():
        model, variables = explorer.run.experiment.model, explorer.run.state.variables
        noise = [n[:1] for n in explorer.run.draw_noise(6)]
        image = np.eye(16, dtype=np.float32)[None, ..., None]
        kl = jax.jit(model.apply)(variables, image, noise=noise).kl
        expected = np.asarray(kl)[0]
    np.testing.assert_allclose(answer["nats"][0], expected[0], rtol=1e-4)  # no noise above it
    assert all(nats > 0 for nats in answer["nats"]) and len(answer["nats"]) == GROUPS
    assert len(answer["held_out"]) == GROUPS and answer["note"] == "mean of 6 held-out images"
    assert explorer.answer(requests.Divergence(SAMPLE), now)["held_out"] == answer["held_out"]


def test_missing_data_are_reported(explorer, monkeypatch):
    def gone(*_, **__):
        raise ValueError("no such data")

    monkeypatch.setattr(module.inputs, "select", gone)
    answer = module.Explorer(explorer.run)._held_out
    assert answer == (None, "no held-out images: no such data")


def test_recalibrated_statistics_are_computed_once_for_a_temperature(
    explorer, allowing, monkeypatch
):
    watched = []
    watch = lambda what, items: watched.append(what) or items  # noqa: E731
    request = requests.Samples(3, (0.8, 0.8), True)
    answer = explorer.answer(request, watch)
    assert watched == ["recalibrating at temperature 0.8-0.8"]
    assert answer["statistics"] == "pooled, 3 passes of 4 images at temperature 0.8"
    assert list((explorer.run.workdir / "recalibration").glob("*temperature_0.8_*"))
    again = explorer.answer(requests.Samples(4, (0.8, 0.8), True), watch)
    assert len(watched) == 1 and again["images"] != answer["images"]
    explorer.answer(requests.Samples(4, (0.8, 0.3), True), watch)
    assert len(watched) == 2
    with allowing():
        expected = explorer.run.recalibrated(0.8).sample(6, temperature=0.8, seed=3)
    assert close(explorer.draw(request).images, expected, 1e-3)
    kept = explorer.draw(requests.Keep(requests.Picture(request, 0), 2, 1, T))
    assert kept.run.recalibration == answer["statistics"]


def test_a_superseded_recalibration_is_not_cached(explorer):
    job, request = Job(), requests.Samples(3, (0.9, 0.9), True)

    def watch(what, items):
        for number, item in enumerate(job.watch(what, items)):
            job.cancelled = number == 1
            yield item

    with pytest.raises(Superseded):
        explorer.answer(request, watch)
    assert not list((explorer.run.workdir / "recalibration").glob("*temperature_0.9_*"))
    assert explorer.answer(request, now)["statistics"] != "none"


def content(answer):
    return io.BytesIO(base64.b64decode(answer["content"]))


def test_a_picture_can_be_downloaded_as_png_and_latents(explorer, tmp_path, allowing):
    drawn = explorer.draw(SAMPLES)
    answer = explorer.answer(requests.Download(SAMPLE, "png"), now)
    picture = Image.open(content(answer))
    assert answer["name"] == "tiny_samples_2.png"
    assert picture.text["seed"] == "3" and picture.text["index"] == "2"
    assert close(np.asarray(picture) / 255, drawn.images[2, ..., 0], 1 / 255)

    answer = explorer.answer(requests.Download(SAMPLE, "npz"), now)
    file = tmp_path / answer["name"]
    file.write_bytes(content(answer).read())
    latents = encode.load_latents(file)
    with allowing():
        assert close(explorer.run.decode(latents), drawn.images[2:3])


def test_pictures_are_sent_to_the_page_as_png(explorer):
    answer = explorer.answer(SAMPLES, now)
    first = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    assert close(np.asarray(first) / 255, explorer.draw(SAMPLES).images[0, ..., 0], 1 / 255)
    assert answer["statistics"] == "none" and len(answer["images"]) == 6


def test_the_page_gets_a_description_of_the_run(explorer):
    described = explorer.describe()
    assert described["name"] == "tiny" and described["num"] == 6
    assert described["scales"] == [4, 8] and described["groups"] == [0, 0, 1, 1]


SMALL = images_lib.encode(np.zeros((8, 8, 1), np.uint8))


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (requests.Samples(0, (1.0,) * 3, False), "3 values for 2 scale"),
        (requests.Samples(0, (0.0,), False), "temperature must be positive"),
        (requests.Redraw(SAMPLE, 4, 0, T), "group must be from 0"),
        (requests.Keep(IMAGE, 5, 0, T), "groups must be from 0 to 4, not 5"),
        (requests.Divergence(requests.Picture(SAMPLES, 6)), "index must be from 0 to 5"),
        (requests.Download(requests.Picture(IMAGE.request, 1), "png"), "index must be from 0 to 0"),
        (requests.Encode(b"no", 0), "the image: not a PNG"),
        (
            requests.Encode(SMALL, 0),
            r"images must be of shape \(N, 16, 16, 1\), not \(1, 8, 8, 1\)",
        ),
    ],
)
def test_requests_that_do_not_fit_the_run_are_errors(explorer, request_, complaint):
    with pytest.raises(ValueError, match=complaint):
        explorer.answer(request_, now)
