"""Reads and writes the folders of checkpoints: `checkpoints/STEP/` with `state`, `data` and
`evaluation`.

They are read without Orbax's checkpoint manager, which fails as soon as one folder is damaged.
"""

import asyncio
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from nvae_jax import files, paths

COMMITTED = "commit_success.txt"  # the file by which Orbax marks a complete checkpoint in a bucket
METRIC = "nelbo"  # of held-out images; the best checkpoint has the lowest

# Replicas of an array of at least so many bytes each write one slice of it. Smaller arrays are
# written whole: slicing compiles a program for every shape and slice, which would be hundreds of
# programs at the first save of a run on eight devices.
_MIN_SLICED_BYTES = 2**22


class _Arrays(ocp.type_handlers.ArrayHandler):
    """Orbax's array handler, except that after a failed read it waits for the other reads.

    Orbax closes their event loop, so that each of them would print a traceback of its own.
    """

    async def deserialize(self, infos, args=None):
        """Reads arrays; see Orbax."""
        others = asyncio.all_tasks()
        try:
            return await super().deserialize(infos, args)
        except Exception:
            while reads := asyncio.all_tasks() - others:
                await asyncio.gather(*reads, return_exceptions=True)
            raise


def handlers() -> dict[str, Any]:
    """The Orbax handlers that read and write each part of a checkpoint."""
    arrays = _Arrays(min_slice_bytes_for_replica_parallel=_MIN_SLICED_BYTES)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    return {
        "state": ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
        "data": ocp.JsonCheckpointHandler(),
        "evaluation": ocp.JsonCheckpointHandler(),
    }


def steps(directory: Path) -> list[int]:
    """The steps of all complete checkpoints in ascending order, including damaged ones."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    found = (int(name) for name in names if name.isdecimal() and str(int(name)) == name)
    return sorted(step for step in found if _is_finished(directory / str(step)))


def _is_finished(folder):
    """Whether a checkpoint was written to its end. On a file system Orbax renames the folder when
    it is complete; in a bucket it adds a marker file."""
    return not paths.is_bucket(folder) or (folder / COMMITTED).is_file()


def unfinished(directory: Path, step: int) -> list[Path]:
    """The folders that a checkpoint which could not be written left behind."""
    if paths.is_bucket(directory):
        return [] if _is_finished(directory / str(step)) else [directory / str(step)]
    return list(directory.glob(f"{step}.*"))


def read(directory: Path, step: int, wanted: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Reads a checkpoint's arrays and its position in the data, without waiting for other
    processes.

    Args:
      directory: the folder of all checkpoints.
      step: step of the checkpoint to read.
      wanted: {field: tree of shapes with shardings}; other fields are not read.

    Returns:
      ({field: tree of arrays}, state of the data iterator).

    Raises:
      Exception: of any class, if something is damaged or missing.
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
    # For an array that is missing, Orbax returns the requested shape.
    complete = all(isinstance(array, jax.Array) for array in jax.tree.leaves(found))
    if not complete or jax.tree.map(_kind, found) != jax.tree.map(_kind, wanted):
        raise ValueError("its arrays are not those of this model")
    return found, data_state


def stored_shapes(directory: Path, step: int) -> dict[str, Any]:
    """Reads the shapes of a checkpoint's arrays as {field: tree of shapes}.

    Raises:
      Exception: of any class, if something is damaged or missing.
    """
    return handlers()["state"].metadata(directory / str(step) / "state").tree


def _kind(array):
    return array.shape, array.dtype


def read_score(directory: Path, step: int) -> float:
    """`METRIC` of a checkpoint, or infinity if it has none or cannot be read."""
    try:
        return score(json.loads((directory / str(step) / "evaluation" / "metadata").read_text()))
    except Exception:  # damaged, or written by a version without metrics in checkpoints
        return math.inf


def write_metrics(directory: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Replaces the metrics of a checkpoint."""
    files.write_json(directory / str(step) / "evaluation" / "metadata", metrics)


def score(metrics: Mapping[str, float]) -> float:
    """`METRIC` among `metrics`, or infinity if it is missing or not finite."""
    value = (metrics or {}).get(METRIC)
    return value if value is not None and math.isfinite(value) else math.inf


def rank(steps: Iterable[int], scores: Mapping[int, float]) -> list[int]:
    """The steps that have a finite score, best first."""
    finite = [step for step in steps if scores.get(step, math.inf) < math.inf]
    return sorted(finite, key=lambda step: scores[step])
