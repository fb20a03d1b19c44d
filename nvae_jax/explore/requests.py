"""What the page may ask for. Requests can be compared, and say everything that a picture depends
on: the same request gives the same pictures."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from nvae_jax.schema import LARGEST_INT

DEEPEST = 30  # pictures made of pictures made of pictures ...
Temperature = tuple[float, ...]  # one for all scales, or one a scale, coarsest first


@dataclass(frozen=True)
class Samples:
    """Draws from the prior."""

    seed: int
    temperature: Temperature
    recalibrate: bool


@dataclass(frozen=True)
class Encode:
    """A draw of the latents of an image of the model's size, a PNG."""

    image: bytes
    seed: int


@dataclass(frozen=True)
class Picture:
    """One of the pictures that a request gives."""

    request: "Drawing"
    index: int


@dataclass(frozen=True)
class Redraw:
    """A picture, and what it is with one group drawn again and the noise of the others kept."""

    of: Picture
    group: int
    seed: int
    temperature: Temperature


@dataclass(frozen=True)
class Keep:
    """The latents of a picture's first groups, and others drawn from the prior below them."""

    of: Picture
    groups: int
    seed: int
    temperature: Temperature


@dataclass(frozen=True)
class Interpolate:
    """From one picture to another."""

    start: Picture
    end: Picture


@dataclass(frozen=True)
class Divergence:
    """The KL of each group for a picture."""

    of: Picture


@dataclass(frozen=True)
class Download:
    """A file of a picture: "png" of its pixels, or "npz" of its latents."""

    of: Picture
    ending: str


Drawing = Samples | Encode | Redraw | Keep | Interpolate
Request = Drawing | Divergence | Download
DRAWINGS = {kind.__name__.lower(): kind for kind in (Samples, Encode, Redraw, Keep, Interpolate)}
KINDS = {**DRAWINGS, "divergence": Divergence, "download": Download}


def parse(value: Any, kinds: Mapping[str, Any] = KINDS, depth: int = 0) -> Any:
    """A request from JSON: {"kind": a name of `kinds`, and its fields}.

    Raises:
      ValueError: something is missing, unknown or of the wrong type, or pictures are made of
        pictures more than `DEEPEST` times.
    """
    if depth > DEEPEST:
        raise ValueError(f"made of pictures {depth} times over: start from a new one")
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
    """A request as JSON for a file's metadata, images by their SHA-256."""
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
