"""Published checkpoint files, read with PyTorch's safe loader and nothing else.

PyTorch is an optional extra: it is imported when a file is read or written.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvae_jax import files

NEEDED = ("state_dict", "args")


@dataclass(frozen=True)
class PublishedFile:
    """What a published checkpoint holds that is of use here."""

    state: Mapping[str, np.ndarray]  # under published names, float32
    args: Mapping[str, Any]  # command-line arguments
    epoch: int = 0  # epochs done
    step: int = 0  # updates done


def read(path):
    """Reads a published checkpoint without running anything that it may contain.

    Raises:
      ValueError: PyTorch is not installed; there is no such file; it is no checkpoint; it lacks
        something; or it asks for anything but tensors, plain values and `argparse.Namespace`.
    """
    torch, path = _torch(), Path(path)
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
    return PublishedFile(
        state={name: _to_numpy(path, name, value) for name, value in state.items()},
        args=dict(args) if isinstance(args, dict) else dict(vars(args)),
        epoch=int(content.get("epoch") or 0),
        step=int(content.get("global_step") or 0),
    )


def _load(torch, path):
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it holds more than tensors and plain values"
        raise ValueError(f"{path} is refused, nothing in it was run: {what}") from None
    except Exception as error:  # a damaged file can fail in any way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no PyTorch checkpoint: {reason[:200]}") from None


def _to_numpy(path, name, value):
    try:
        return (value.float() if value.is_floating_point() else value).numpy()
    except AttributeError:
        raise ValueError(f"{path}: {name} is no array but {type(value).__name__}") from None


def write(path, published, operations):
    """Writes a checkpoint in the published format.

    Args:
      path: of a new file.
      published: `PublishedFile`.
      operations: from `arguments.export_operations`.

    Raises:
      ValueError: PyTorch is not installed, or the file exists.
    """
    torch, path = _torch(), Path(path)
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
    with files.replacing(path) as temporary:
        torch.save(content, temporary)


def _torch():
    try:
        import torch
    except ImportError:
        raise ValueError(
            "published checkpoints are PyTorch files: pip install 'nvae_jax[torch]' first"
        ) from None
    return torch
