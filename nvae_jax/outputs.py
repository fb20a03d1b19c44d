"""Protects files from being overwritten. Commands call `check` before they compute.

An output must not be one of the inputs. A file made with other settings, or by another program, is
only replaced with --overwrite.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvae_jax import files, paths, processes


def check(
    outputs: Sequence[str | Path],
    settings: Mapping[str, Any],
    *,
    inputs: Iterable[str | Path] = (),
    overwrite: bool = False,
) -> None:
    """Checks that output files can be written and do not replace other results.

    All processes of a cluster call it with the same settings.

    Args:
      outputs: paths of the output files. The settings of a file whose type cannot store metadata
        are read from the first output.
      settings: {name: value}, stored in each file; equal settings produce equal files.
      inputs: paths of files that are read; they are never overwritten.
      overwrite: whether to replace files made with other settings.

    Raises:
      ValueError: in all processes, if a file must not be written; the message says why and what to
        do.
    """
    processes.check_same("settings", {**settings, "out": str(outputs[0])})

    def check_files():
        for path in outputs:
            _check_no_input(paths.check_writable(path, "--out"), inputs)
        check_settings(outputs, settings, overwrite=overwrite)

    processes.on_primary(check_files)


def check_settings(
    outputs: Sequence[str | Path], settings: Mapping[str, Any], *, overwrite: bool = False
) -> None:
    """Raises ValueError if a file exists that was made with other settings; see `check`."""
    settings = json.loads(files.to_json(settings))
    for path in [] if overwrite else [path for path in map(paths.parse, outputs) if path.exists()]:
        stored = _stored(path if path.suffix in READERS else paths.parse(outputs[0]), settings)
        if not stored:
            raise ValueError(
                f"{path} was not made by this command: it is replaced only with --overwrite"
            )
        different = [
            f"{name} is {stored.get(name)!r} in the file and {value!r} now"
            for name, value in settings.items()
            if stored.get(name) != value
        ]
        if different:
            raise ValueError(
                f"{path} holds another result: {'; '.join(different)}: it is replaced only with "
                "--overwrite"
            )


def _check_no_input(path, inputs):
    if not path.exists():
        return
    for other in map(paths.parse, inputs):
        inside = other.is_dir() and other.resolve() in path.resolve().parents
        if inside or paths.same(path, other):
            raise ValueError(f"{path} is an input, so it cannot be an output: name another --out")


def _stored(path, wanted):
    """The settings named in `wanted` that are stored in a file, or {} if there are none."""
    try:
        return READERS[path.suffix](path, wanted)
    except Exception:  # reading a file of another program can raise anything
        return {}


def _read_arrays(path, wanted):
    with files.open_regular(path) as content, np.load(content, allow_pickle=False) as file:
        return {name: file[name].tolist() for name in file.files if name in wanted}


def _read_picture(path, wanted):
    with files.open_regular(path) as content, Image.open(content, formats=["PNG"]) as picture:
        texts = getattr(picture, "text", {})  # text chunks, which only a PNG has
    texts = {name: text for name, text in texts.items() if name in wanted}
    return {
        name: text if isinstance(wanted[name], str) else json.loads(text)
        for name, text in texts.items()
    }


def _read_json(path, wanted):
    return {name: value for name, value in json.loads(path.read_text()).items() if name in wanted}


def _read_page(path, wanted):
    """Reads the settings of a report, which are in an HTML element of their own."""
    found = re.search(r'id="settings">(.*?)</script>', path.read_text(), re.DOTALL)
    settings = json.loads(found[1]) if found else {}
    return {name: value for name, value in settings.items() if name in wanted}


READERS = {
    ".npz": _read_arrays,
    ".png": _read_picture,
    ".json": _read_json,
    ".html": _read_page,
}
