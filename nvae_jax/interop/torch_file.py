"""Reads published checkpoint files with PyTorch's safe loader, and writes them.

PyTorch is an optional extra, which is imported when a file is read or written.
"""

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvae_jax import extras, files, mirror, paths

NEEDED = ("state_dict", "args")
LARGEST_COUNT = 2**31  # of updates: they are counted in int32


@dataclass(frozen=True)
class PublishedFile:
    """The content of a published checkpoint that this project uses."""

    state: Mapping[str, np.ndarray]  # under published names, float32
    args: Mapping[str, Any]  # command-line arguments
    epoch: int = 0  # epochs done
    step: int = 0  # updates done


def read(path: str | Path) -> PublishedFile:
    """Reads a published checkpoint without running any code in it.

    Raises:
      ValueError: if PyTorch is not installed, there is no such file, it is not a published
        checkpoint or incomplete, or it contains anything but tensors, plain values and
        `argparse.Namespace`.
    """
    torch, path = _torch(), mirror.existing(paths.parse(path, "torch"))
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    content = _load(torch, path)
    missing = [name for name in NEEDED if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path} is not a published checkpoint: it lacks {' and '.join(missing)}")
    args, state = content["args"], content["state_dict"]
    if not isinstance(args, argparse.Namespace | dict) or not isinstance(state, dict):
        raise ValueError(
            f"{path} is not a published checkpoint: args or state_dict has the wrong type"
        )
    args = dict(args) if isinstance(args, dict) else dict(vars(args))
    if unnamed := [name for name in (*args, *state) if not isinstance(name, str)]:
        raise ValueError(f"{path}: names must be strings, not {unnamed[0]!r}")
    return PublishedFile(
        state={name: _to_numpy(torch, path, name, value) for name, value in state.items()},
        args=args,
        epoch=_count(path, content, "epoch"),
        step=_count(path, content, "global_step"),
    )


def _load(torch, path):
    try:
        # torch.load gives warnings about its own internals.
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it holds more than tensors and plain values"
        raise ValueError(f"{path} is refused, nothing in it was run: {what}") from None
    except Exception as error:  # reading a damaged file can raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a PyTorch checkpoint: {reason[:200]}") from None


def _to_numpy(torch, path, name, value):
    kind = _kind(torch, value)
    if kind != "plain":
        raise ValueError(f"{path}: {name} is not a plain array but {kind}")
    value = value.detach()
    array = (value.float() if value.is_floating_point() else value).numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} has NaN or infinity: the weights cannot be used")
    return array


def _kind(torch, value):
    """Returns "plain" for an ordinary tensor, otherwise a description of the value."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    kinds = {
        "quantised": value.is_quantized,
        "sparse": value.layout != torch.strided,
        "without values (meta)": value.is_meta,
        "complex": value.is_complex(),
    }
    return next((kind for kind, found in kinds.items() if found), "plain")


def _count(path, content, name):
    """Reads a number of epochs or updates; 0 if the file has none."""
    value = content.get(name)
    if value is None:
        return 0
    # The comparison is also false for NaN.
    if not isinstance(value, int | float) or not 0 <= value < LARGEST_COUNT:
        raise ValueError(f"{path}: {name} must be a whole number from 0, not {value!r}"[:300])
    return int(value)


def write(path: str | Path, published: PublishedFile, operations: Mapping[str, list[str]]) -> None:
    """Writes a checkpoint in the published format.

    Args:
      path: a new file.
      published: the content to write.
      operations: the result of `arguments.export_operations`.

    Raises:
      ValueError: if PyTorch is not installed, or the file exists.
    """
    torch, path = _torch(), paths.parse(path, "torch")
    if path.exists():
        raise ValueError(f"{path} exists: name a new file, nothing was written")
    content = {
        "epoch": published.epoch,
        "state_dict": {name: torch.tensor(array) for name, array in published.state.items()},
        "optimizer": {"state": {}, "param_groups": []},
        "global_step": published.step,
        "args": argparse.Namespace(**published.args),
        "arch_instance": operations,
        "scheduler": {},
        "grad_scalar": {},
    }
    with files.atomic_write(path) as temporary:
        torch.save(content, temporary)


def _torch():
    return extras.load("torch", "torch", "a published checkpoint, which is a PyTorch file,")
