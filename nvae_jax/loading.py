"""Loads a run for inference: its experiment and the variables of a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvae_jax import build, hosts, paths, processes, run_directory
from nvae_jax.checkpoint_reader import CheckpointReader
from nvae_jax.state import Snapshot


def load_run(
    workdir: str | Path,
    which: str | int = "latest",
    *,
    join: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> tuple[build.Experiment, Snapshot]:
    """Loads a run for inference on all available devices.

    Args:
      workdir: the run directory.
      which: the checkpoint; see `CheckpointReader.restore`.
      join: whether to join the other processes of a cluster, if this is one.
      changes: {"section.key": value} in its config; see `run_directory.load_config`.

    Returns:
      (experiment, `Snapshot`).

    Raises:
      ValueError: if there is no run, or no such checkpoint that can be read.
    """
    workdir = paths.parse(workdir, "workdir")
    config = run_directory.load_config(workdir, changes)
    if join:
        hosts.join(config)
    with processes.raise_together():
        experiment = build.build_for_inference(config)
    return experiment, load_snapshot(workdir, experiment, which)[0]


def load_snapshot(
    workdir: str | Path, experiment: build.Experiment, which: str | int = "latest"
) -> tuple[Snapshot, Any]:
    """Loads (`Snapshot`, data_state) from a checkpoint of the run in `workdir`; see `load_run`.

    Args:
      workdir: the run directory.
      experiment: from `build.build_for_inference`.
      which: the checkpoint; see `CheckpointReader.restore`.
    """
    variables, averaged = experiment.abstract_variables(), experiment.loop.ema_decay > 0
    checkpoints = CheckpointReader(workdir)
    restored = checkpoints.restore_snapshot(variables, which, averaged=averaged)
    if restored is None:
        raise ValueError(f"{workdir} has no checkpoint yet: train it first")
    if broken := restored[0].nonfinite():
        raise ValueError(
            f"the checkpoint of step {restored[0].step} in {workdir} has NaN or infinity in "
            f"{len(broken)} array(s), first {broken[0]}: take another with --checkpoint=STEP"
        )
    return restored
