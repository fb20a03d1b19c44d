"""The folders of checkpoints: `checkpoints/STEP/` with `state`, `data` and `evaluation` in it.

They are read without Orbax's manager, which opens nothing where one folder is damaged.
"""

import asyncio
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from nvae_jax import files, paths

COMMITTED = "commit_success.txt"  # Orbax's mark in a bucket
METRIC = "nelbo"  # of held-out images: the lower, the better the checkpoint

# Devices that hold the same array write a part of it each, from so many bytes on: every shape and
# part is a program to compile, hundreds of them at the first save of a run on eight devices.
_SMALLEST_PART = 2**22


class _Arrays(ocp.type_handlers.ArrayHandler):
    """Orbax's, which ends at the first array that cannot be read, but for the other reads: each
    would end in a traceback of its own, because Orbax closes their event loop."""

    async def deserialize(self, infos, args=None):
        """See Orbax."""
        others = asyncio.all_tasks()
        try:
            return await super().deserialize(infos, args)
        except Exception:
            while reads := asyncio.all_tasks() - others:
                await asyncio.gather(*reads, return_exceptions=True)
            raise


def handlers() -> dict[str, Any]:
    """The Orbax handlers that read and write each part of a checkpoint."""
    arrays = _Arrays(min_slice_bytes_for_replica_parallel=_SMALLEST_PART)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "data": ocp.JsonCheckpointHandler(),
        "evaluation": ocp.JsonCheckpointHandler(),
    }


def steps(directory: Path) -> list[int]:
    """The steps of all checkpoints, damaged ones too."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    found = (int(name) for name in names if name.isdecimal() and str(int(name)) == name)
    return sorted(step for step in found if _is_finished(directory / str(step)))


def _is_finished(folder):
    """A folder of a file system gets its name when all is in it; one in a bucket gets a mark."""
    return not paths.is_bucket(folder) or (folder / COMMITTED).is_file()


def unfinished(directory: Path, step: int) -> list[Path]:
    """What there is of a checkpoint that could not be written."""
    if paths.is_bucket(directory):
        return [] if _is_finished(directory / str(step)) else [directory / str(step)]
    return list(directory.glob(f"{step}.*"))


def read(directory: Path, step: int, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """A checkpoint's arrays and its position in the data. Waits for no other process.

    Args:
      directory: of all checkpoints.
      step: which of them.
      wanted: {field: shapes with places}; no other field is read.

    Returns:
      ({field: arrays}, data_state).

    Raises:
      Exception: of many kinds, where something is damaged or is missing.
    """
    data_state = json.loads((directory / str(step) / "data" / "metadata").read_text())
    if not isinstance(data_state, dict) or data_state.get("step") != step:
        raise ValueError(f"its data state is not that of step {step}")
    arguments = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    try:
        found = handlers()["state"].restore(directory / str(step) / "state", args=arguments)
    except Exception as error:
        reason = error.__cause__ or error
        raise ValueError(f"its arrays are damaged or not those of this model: {reason}") from None
    # What is not there, Orbax gives back as it was asked for.
    there = all(isinstance(array, jax.Array) for array in jax.tree.leaves(found))
    if not there or jax.tree.map(_kind, found) != jax.tree.map(_kind, wanted):
        raise ValueError("its arrays are not those of this model")
    return found, data_state


def stored_shapes(directory: Path, step: int) -> dict[str, Any]:
    """{field: the shapes of its arrays} of what a checkpoint holds.

    Raises:
      Exception: of many kinds, where something is damaged or is missing.
    """
    return handlers()["state"].metadata(directory / str(step) / "state").tree


def _kind(array):
    return array.shape, array.dtype


def read_score(directory: Path, step: int) -> float:
    """`METRIC` of a checkpoint; infinity where it has none, or a damaged one."""
    try:
        return score(json.loads((directory / str(step) / "evaluation" / "metadata").read_text()))
    except Exception:  # damaged, or from before there were scores
        return math.inf


def write_metrics(directory: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Replaces the metrics of a checkpoint."""
    files.write_json(directory / str(step) / "evaluation" / "metadata", metrics)


def score(metrics: Mapping[str, float]) -> float:
    """`METRIC`, or infinity where it is missing or not finite."""
    value = (metrics or {}).get(METRIC)
    return value if value is not None and math.isfinite(value) else math.inf
