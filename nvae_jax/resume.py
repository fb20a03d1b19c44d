"""Decides whether a run resumes or starts anew.

A run that has lost its checkpoints starts anew only with --restart.
"""

import sys
from pathlib import Path
from typing import Any

from nvae_jax import checkpoint_files, paths, processes
from nvae_jax.checkpoint_reader import CheckpointReader
from nvae_jax.run_directory import CHECKPOINTS, METRICS, UNSAVED, has_rows
from nvae_jax.state import State


def restore(
    workdir: str | Path,
    checkpoints: CheckpointReader,
    abstract_state: State,
    *,
    restart: bool = False,
) -> tuple[State, Any] | None:
    """Restores the state with which the run in `workdir` resumes.

    Args:
      workdir: the run directory.
      checkpoints: its `CheckpointReader`.
      abstract_state: the shapes of the training state, with shardings.
      restart: whether a run that was trained but has no readable checkpoint starts anew.

    Returns:
      (state, state of the data iterator), or None if the run starts anew.

    Raises:
      ValueError: if no checkpoint can be read and the run must not start anew, or if `restart` is
        set although a checkpoint can be read.
    """
    starts_anew = restart or _is_unsaved(workdir)
    try:
        restored = checkpoints.restore(abstract_state)
    except ValueError as error:
        if not starts_anew:
            raise ValueError(f"{error}; --restart starts anew") from error
        restored = None
    with processes.raise_together():
        _check(workdir, restored, restart)
        if restored is None and processes.is_primary():
            (paths.parse(workdir) / UNSAVED).touch()
    return restored


def is_new(workdir: str | Path, restart: bool) -> bool:
    """Whether the run in `workdir` starts anew, judging by its files; the same in all processes."""
    steps = checkpoint_files.steps(paths.parse(workdir) / CHECKPOINTS)
    return processes.all_gather(restart or _is_unsaved(workdir) or not steps)[0]


def _check(workdir, restored, restart):
    if restored is not None and restart:
        raise ValueError(
            f"{workdir} has a checkpoint of step {int(restored[0].step)}: without --restart "
            "training resumes from it; to start anew name a new folder"
        )
    lost = has_rows(workdir) and not _is_unsaved(workdir)
    if restored is None and not restart and lost:
        raise ValueError(
            f"{workdir} has metrics but no checkpoint: training would start anew and replace them; "
            "put its checkpoints/ back, or pass --restart"
        )


def _is_unsaved(workdir):
    """Whether a run was interrupted before its first checkpoint.

    Such a run has lost no checkpoint and starts anew without --restart, even if an earlier
    --restart left damaged checkpoints in its folder.
    """
    return (paths.parse(workdir) / UNSAVED).exists()


def describe_progress(workdir: str | Path) -> str:
    """A text that changes when the run in `workdir` makes progress: its newest checkpoint and its
    last row of metrics."""
    folder = paths.parse(workdir)
    rows = (folder / METRICS).read_text().splitlines() if has_rows(folder) else []
    newest = max(checkpoint_files.steps(folder / CHECKPOINTS), default=0)
    return f"{newest} {rows[-1] if rows else ''}"


if __name__ == "__main__":  # for the shell scripts that restart runs
    print(describe_progress(sys.argv[1]))
