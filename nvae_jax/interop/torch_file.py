"""Published checkpoint files, read with PyTorch's safe loader and nothing else.

PyTorch is an optional extra: it is imported when a file is read or written.
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
    """What a published checkpoint holds that is of use here."""

    state: Mapping[str, np.ndarray]  # under published names, float32
    args: Mapping[str, Any]  # command-line arguments
    epoch: int = 0  # epochs done
    step: int = 0  # updates done


def read(path: str | Path) -> PublishedFile:
    """Reads a published checkpoint without running anything that it may contain.

    Raises:
      ValueError: PyTorch is not installed; there is no such file; it is no checkpoint; it lacks
        something; or it asks for anything but tensors, plain values and `argparse.Namespace`.
    """
    torch, path = _torch(), mirror.existing(paths.parse(path, "torch"))
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    content = _load(torch, path)
    missing = [name for name in NEEDED if not isinstance(content, dict) or name not in content]
    if missing:
        raise ValueError(f"{path} is no published checkpoint: it lacks {' and '.join(missing)}")
    args, state = content["args"], content["state_dict"]
    if not isinstance(args, argparse.Namespace | dict) or not isinstance(state, dict):
        raise ValueError(
            f"{path} is no published checkpoint: args or state_dict is of another kind"
        )
    args = dict(args) if isinstance(args, dict) else dict(vars(args))
    if unnamed := [name for name in (*args, *state) if not isinstance(name, str)]:
        raise ValueError(f"{path}: names must be text, not {unnamed[0]!r}")
    return PublishedFile(
        state={name: _to_numpy(torch, path, name, value) for name, value in state.items()},
        args=args,
        epoch=_count(path, content, "epoch"),
        step=_count(path, content, "global_step"),
    )


def _load(torch, path):
    try:
        # It warns of storages that only its own programmers can avoid.
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it holds more than tensors and plain values"
        raise ValueError(f"{path} is refused, nothing in it was run: {what}") from None
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no PyTorch checkpoint: {reason[:200]}") from None


def _to_numpy(torch, path, name, value):
    kind = _kind(torch, value)
    if kind != "plain":
        raise ValueError(f"{path}: {name} is no plain array but {kind}")
    value = value.detach()
    array = (value.float() if value.is_floating_point() else value).numpy()
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} has NaN or infinity: these are no weights of a model")
    return array


def _kind(torch, value):
    """ "plain", or what else a value of a state is."""
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
    """A number of epochs or updates; 0 where the file does not say."""
    value = content.get(name)
    if value is None:
        return 0
    # A comparison with NaN is false, too.
    if not isinstance(value, int | float) or not 0 <= value < LARGEST_COUNT:
        raise ValueError(f"{path}: {name} must be a whole number from 0, not {value!r}"[:300])
    return int(value)


def write(path: str | Path, published: PublishedFile, operations: Mapping[str, list[str]]) -> None:
    """Writes a checkpoint in the published format.

    Args:
      path: of a new file.
      published: `PublishedFile`.
      operations: from `arguments.export_operations`.

    Raises:
      ValueError: PyTorch is not installed, or the file exists.
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
