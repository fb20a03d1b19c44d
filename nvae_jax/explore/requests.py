"""The requests of the page. They are comparable and contain everything that images depend on, so
that equal requests give equal images."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from nvae_jax.schema import LARGEST_INT

MAX_DEPTH = 30  # nesting of requests that start from the results of other requests
Temperature = tuple[float, ...]  # one for all scales, or one per scale, coarsest first


@dataclass(frozen=True)
class Samples:
    """Draws from the prior."""

    seed: int
    temperature: Temperature
    recalibrate: bool


@dataclass(frozen=True)
class Encode:
    """Encodes an image, a PNG of the model's size, by a posterior draw."""

    image: bytes
    seed: int


@dataclass(frozen=True)
class Picture:
    """One of the images that a request returns."""

    request: "Drawing"
    index: int


@dataclass(frozen=True)
class Redraw:
    """A picture, and variations of it: one group is drawn anew, the others keep their noise."""

    of: Picture
    group: int
    seed: int
    temperature: Temperature


@dataclass(frozen=True)
class Keep:
    """Images with the coarsest groups of a picture, and the other groups drawn from the prior."""

    of: Picture
    groups: int
    seed: int
    temperature: Temperature


@dataclass(frozen=True)
class Interpolate:
    """An interpolation from one picture to another."""

    start: Picture
    end: Picture


@dataclass(frozen=True)
class Divergence:
    """The KL of each group for a picture."""

    of: Picture


@dataclass(frozen=True)
class Download:
    """A file of a picture: a "png" of its pixels, or an "npz" of its latents."""

    of: Picture
    ending: str


Drawing = Samples | Encode | Redraw | Keep | Interpolate
Request = Drawing | Divergence | Download
DRAWINGS = {kind.__name__.lower(): kind for kind in (Samples, Encode, Redraw, Keep, Interpolate)}
KINDS = {**DRAWINGS, "divergence": Divergence, "download": Download}


def parse(value: Any, kinds: Mapping[str, Any] = KINDS, depth: int = 0) -> Any:
    """Parses a request from JSON: {"kind": a key of `kinds`, and the fields of that class}.

    Raises:
      ValueError: if something is missing, unknown or of the wrong type, or requests are nested more
        than `MAX_DEPTH` times.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"requests are nested {depth} times: start from a new image")
    if not isinstance(value, dict) or str(value.get("kind")) not in kinds:
        raise ValueError(f"a request must have a kind: {', '.join(kinds)}")
    kind = kinds[value["kind"]]
    names = [field.name for field in fields(kind)]
    if wrong := {"kind", *names} ^ set(value):
        raise ValueError(
            f"{value['kind']} takes {', '.join(names)}: see {', '.join(sorted(wrong))}"
        )
    return kind(**{name: _READERS[name](name, value[name], depth) for name in names})


def describe(value: Any) -> Any:
    """Converts a request to JSON for a file's metadata; images are replaced by their SHA-256."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()[:16]
    if not is_dataclass(value):
        return value
    names = [field.name for field in fields(value)]
    described = {name: describe(getattr(value, name)) for name in names}
    return {"kind": type(value).__name__.lower(), **described}


def _picture(name, value, depth):
    if not isinstance(value, dict) or set(value) != {"request", "index"}:
        raise ValueError(f"{name} must be a picture: a request and an index")
    index = _integer("index", value["index"], depth)
    return Picture(parse(value["request"], DRAWINGS, depth + 1), index)


def _integer(name, value, _):
    if type(value) is not int or not 0 <= value <= LARGEST_INT:
        raise ValueError(
            f"{name} must be a whole number from 0 to {LARGEST_INT}, not {value!r:.40}"
        )
    return value


def _boolean(name, value, _):
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r:.40}")
    return value


def _temperature(name, value, _):
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(type(n) in (int, float) and abs(n) < LARGEST_INT for n in numbers):
        raise ValueError(f"{name} must be numbers, not {value!r:.40}")
    return tuple(map(float, numbers))


def _image(name, value, _):
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError(f"{name} must be a PNG in base64") from None


def _ending(name, value, _):
    if value not in ("png", "npz"):
        raise ValueError(f"{name} must be png or npz, not {value!r:.40}")
    return value


_READERS = {
    "seed": _integer,
    "group": _integer,
    "groups": _integer,
    "recalibrate": _boolean,
    "temperature": _temperature,
    "image": _image,
    "ending": _ending,
    **dict.fromkeys(("of", "start", "end"), _picture),
}
