"""The requests of the page."""

import pytest

from nvae_jax.explore import requests

SAMPLES = {"kind": "samples", "seed": 3, "temperature": [1, 0.5], "recalibrate": True}
PICTURE = {"request": SAMPLES, "index": 2}


def test_json_is_parsed_to_requests():
    samples = requests.Samples(3, (1.0, 0.5), True)
    picture = requests.Picture(samples, 2)
    assert requests.parse(SAMPLES) == samples
    redraw = {"kind": "redraw", "of": PICTURE, "group": 1, "seed": 4, "temperature": 0.7}
    assert requests.parse(redraw) == requests.Redraw(picture, 1, 4, (0.7,))
    both = {"kind": "interpolate", "start": PICTURE, "end": PICTURE}
    assert requests.parse(both) == requests.Interpolate(picture, picture)
    encode = {"kind": "encode", "image": "AAE=", "seed": 0}
    assert requests.parse(encode) == requests.Encode(b"\0\1", 0)
    assert hash(requests.parse(both)) == hash(requests.parse(both))


def test_a_request_is_described_for_the_metadata_of_files():
    encode = requests.Picture(requests.Encode(b"", 5), 0)
    told = requests.describe(requests.Keep(encode, 2, 1, (0.7,)))
    assert told["kind"] == "keep" and told["groups"] == 2
    assert told["of"]["request"] == {"kind": "encode", "image": "e3b0c44298fc1c14", "seed": 5}


def nested(times):
    request = SAMPLES
    for _ in range(times):
        of = {"request": request, "index": 0}
        request = {"kind": "keep", "of": of, "groups": 1, "seed": 0, "temperature": 1}
    return request


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (None, "a request must have a kind: samples, encode"),
        ({"kind": "sample"}, "a request must have a kind"),
        ({"kind": ["samples"]}, "a request must have a kind"),
        ({"kind": "samples"}, "samples takes seed, temperature, recalibrate: see recalibrate, s"),
        ({**SAMPLES, "more": 1}, "see more"),
        ({**SAMPLES, "seed": -1}, "seed must be a whole number from 0 to 2147483647, not -1"),
        ({**SAMPLES, "seed": True}, "seed must be a whole number"),
        ({**SAMPLES, "seed": 2**31}, "seed must be a whole number"),
        ({**SAMPLES, "seed": "x" * 99}, "seed must be a whole number"),
        ({**SAMPLES, "temperature": []}, "temperature must be numbers"),
        ({**SAMPLES, "temperature": ["1"]}, "temperature must be numbers"),
        ({**SAMPLES, "temperature": float("nan")}, "temperature must be numbers"),
        ({**SAMPLES, "temperature": 10**400}, "temperature must be numbers"),
        ({**SAMPLES, "recalibrate": 1}, "recalibrate must be true or false"),
        ({"kind": "encode", "image": "%", "seed": 0}, "image must be a PNG in base64"),
        ({"kind": "encode", "image": 5, "seed": 0}, "image must be a PNG in base64"),
        ({"kind": "divergence", "of": SAMPLES}, "of must be a picture"),
        ({"kind": "divergence", "of": {**PICTURE, "index": -1}}, "index must be a whole number"),
        (
            {"kind": "divergence", "of": {"request": {"kind": "divergence"}, "index": 0}},
            "must have a kind: samples, encode, redraw, keep, interpolate",
        ),
        ({"kind": "download", "of": PICTURE, "ending": "exe"}, "ending must be png or npz"),
        (nested(31), "requests are nested 31 times: start from a new image"),
    ],
)
def test_invalid_requests_are_one_line_errors(request_, complaint):
    with pytest.raises(ValueError) as error:
        requests.parse(request_)
    assert complaint in str(error.value) and len(str(error.value)) < 200
    assert "\n" not in str(error.value)


def test_nested_requests_are_allowed():
    assert requests.parse(nested(30))
