"""Whether a run goes on or begins: one that has lost its checkpoints begins only when told to."""

from pathlib import Path

from nvae_jax import distributed

METRICS = "metrics.jsonl"


def restore(workdir, checkpoints, abstract_state, *, restart=False):
    """What the run in `workdir` goes on with: (state, data_state), or None where it begins.

    Args:
      workdir: the run directory.
      checkpoints: its `Checkpoints`.
      abstract_state: the state's shapes, with their places.
      restart: whether a run begins anew that was trained, and of which no checkpoint is left.

    Raises:
      ValueError: no checkpoint is left, or one is, and `restart` says otherwise.
    """
    try:
        restored = checkpoints.restore(abstract_state)
    except ValueError as error:
        if not restart:
            raise ValueError(f"{error}; --restart starts anew") from error
        return None
    with distributed.together():
        _check(workdir, restored, restart)
    return restored


def _check(workdir, restored, restart):
    if restored is not None and restart:
        raise ValueError(
            f"{workdir} has a checkpoint of step {int(restored[0].step)}: without --restart "
            "training goes on from there; to start anew name a new folder"
        )
    if restored is None and not restart and _has_rows(workdir):
        raise ValueError(
            f"{workdir} has metrics but no checkpoint: training would start anew and replace them; "
            "put its checkpoints/ back, or say --restart"
        )


def _has_rows(workdir):
    path = Path(workdir) / METRICS
    return path.is_file() and path.stat().st_size > 0
