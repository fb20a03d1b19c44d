"""Whether a run goes on or begins: one that has lost its checkpoints begins only when told to."""

import sys
from pathlib import Path
from typing import Any

from nvae_jax import checkpoint_files, distributed, paths
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.run_directory import CHECKPOINTS, METRICS, UNSAVED, has_rows
from nvae_jax.state import State


def restore(
    workdir: str | Path, checkpoints: Checkpoints, abstract_state: State, *, restart: bool = False
) -> tuple[State, Any] | None:
    """What the run in `workdir` goes on with: (state, data_state), or None where it begins.

    Args:
      workdir: the run directory.
      checkpoints: its `Checkpoints`.
      abstract_state: the state's shapes, with their places.
      restart: whether a run begins anew that was trained, and of which no checkpoint is left.

    Raises:
      ValueError: no checkpoint is left, or one is, and `restart` says otherwise.
    """
    begins = restart or _is_unsaved(workdir)
    try:
        restored = checkpoints.restore(abstract_state)
    except ValueError as error:
        if not begins:
            raise ValueError(f"{error}; --restart starts anew") from error
        restored = None
    with distributed.raise_together():
        _check(workdir, restored, restart)
        if restored is None and distributed.is_primary():
            (paths.parse(workdir) / UNSAVED).touch()
    return restored


def is_new(workdir: str | Path, restart: bool) -> bool:
    """Whether the run in `workdir` begins, as far as its files tell: the same in all processes."""
    steps = checkpoint_files.steps(paths.parse(workdir) / CHECKPOINTS)
    return distributed.all_gather(restart or _is_unsaved(workdir) or not steps)[0]


def _check(workdir, restored, restart):
    if restored is not None and restart:
        raise ValueError(
            f"{workdir} has a checkpoint of step {int(restored[0].step)}: without --restart "
            "training goes on from there; to start anew name a new folder"
        )
    lost = has_rows(workdir) and not _is_unsaved(workdir)
    if restored is None and not restart and lost:
        raise ValueError(
            f"{workdir} has metrics but no checkpoint: training would start anew and replace them; "
            "put its checkpoints/ back, or say --restart"
        )


def _is_unsaved(workdir):
    """Whether a run was cut off before it saved anything: it has lost none, and begins anew by
    itself, also where `--restart` has left damaged checkpoints of an earlier one behind."""
    return (paths.parse(workdir) / UNSAVED).exists()


def describe_progress(workdir: str | Path) -> str:
    """What changes when the run in `workdir` gets on: its newest checkpoint and its last row."""
    folder = paths.parse(workdir)
    rows = (folder / METRICS).read_text().splitlines() if has_rows(folder) else []
    newest = max(checkpoint_files.steps(folder / CHECKPOINTS), default=0)
    return f"{newest} {rows[-1] if rows else ''}"


if __name__ == "__main__":  # for the scripts that start runs again
    print(describe_progress(sys.argv[1]))
