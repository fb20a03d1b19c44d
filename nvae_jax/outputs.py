"""What may be written: an output is never an input, and what other settings or somebody else made
stays, unless it may be overwritten. Commands ask before they compute."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvae_jax import distributed, files, paths


def check(
    outputs: Sequence[str | Path],
    settings: Mapping[str, Any],
    *,
    inputs: Iterable[str | Path] = (),
    overwrite: bool = False,
) -> None:
    """Raises ValueError unless all files can be, and may be, written; in all processes of a
    cluster, which call it with the same settings, and of which the first one will write.

    Args:
      outputs: their paths; the first says what made it, and so stands for those that cannot.
      settings: {name: value} that they will say; the same ones make the same files again.
      inputs: paths of files that are read.
      overwrite: whether files of other settings may be replaced. Inputs may not.

    Raises:
      ValueError: one of them may not be written; the message says why and what to do.
    """
    distributed.check_same("settings", {**settings, "out": str(outputs[0])})

    def check_files():
        for path in outputs:
            _check_no_input(paths.check_writable(path, "--out"), inputs)
        check_settings(outputs, settings, overwrite=overwrite)

    distributed.on_primary(check_files)


def check_settings(
    outputs: Sequence[str | Path], settings: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Raises ValueError where a file is there that other settings made; see `check`."""
    settings = json.loads(files.to_json(settings))
    for path in [] if overwrite else [path for path in map(paths.parse, outputs) if path.exists()]:
        stored = _stored(path if path.suffix in READERS else paths.parse(outputs[0]), settings)
        if not stored:
            raise ValueError(
                f"{path} does not say that this command made it: it stays, unless --overwrite is "
                "given"
            )
        different = [
            f"{name} is {stored.get(name)!r} there and {value!r} here"
            for name, value in settings.items()
            if stored.get(name) != value
        ]
        if different:
            raise ValueError(
                f"{path} holds another result: {'; '.join(different)}: it stays, unless "
                "--overwrite is given"
            )


def _check_no_input(path, inputs):
    if not path.exists():
        return
    for other in map(paths.parse, inputs):
        inside = other.is_dir() and other.resolve() in path.resolve().parents
        if inside or paths.same(path, other):
            raise ValueError(f"{path} is read, so it cannot be written to: name another --out")


def _stored(path, wanted):
    """What a file says of the settings that are `wanted`; {} where it says nothing."""
    try:
        return READERS[path.suffix](path, wanted)
    except Exception:  # whatever is there in place of ours can fail in any way
        return {}


def _read_arrays(path, wanted):
    with files.open_regular(path) as content, np.load(content, allow_pickle=False) as file:
        return {name: file[name].tolist() for name in file.files if name in wanted}


def _read_picture(path, wanted):
    with files.open_regular(path) as content, Image.open(content, formats=["PNG"]) as picture:
        texts = getattr(picture, "text", {})  # which only a PNG has
    texts = {name: text for name, text in texts.items() if name in wanted}
    return {
        name: text if isinstance(wanted[name], str) else json.loads(text)
        for name, text in texts.items()
    }


def _read_json(path, wanted):
    return {name: value for name, value in json.loads(path.read_text()).items() if name in wanted}


def _read_page(path, wanted):
    """Of a report, which has them in an element of its own."""
    found = re.search(r'id="settings">(.*?)</script>', path.read_text(), re.DOTALL)
    settings = json.loads(found[1]) if found else {}
    return {name: value for name, value in settings.items() if name in wanted}


READERS = {
    ".npz": _read_arrays,
    ".png": _read_picture,
    ".json": _read_json,
    ".html": _read_page,
}
