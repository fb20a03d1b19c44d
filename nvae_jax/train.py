"""The training loop: knows no layer, no data set and no likelihood."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from nvae_jax import (
    allocator,
    build,
    capacity,
    hosts,
    paths,
    processes,
    profiling,
    progress,
    reporting,
    resume,
    run_directory,
    sharding,
    warm_start,
)
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.data import pipeline
from nvae_jax.drawing import Drawing
from nvae_jax.evaluate import HeldOutEvaluator
from nvae_jax.goodput import Goodput
from nvae_jax.interrupt import Interrupt, Interrupted
from nvae_jax.loggers import Logger, Loggers, by_name
from nvae_jax.saving import CheckpointSaver

TERMS = ("reconstruction", "kl", "spectral", "bn", "loss", "gradient_norm")


def train(
    config: ConfigDict | None,
    workdir: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    restart: bool = False,
    extend: bool = False,
    loggers: Sequence[Logger] | None = None,
    profile: tuple[int, int] | None = None,
) -> None:
    """Trains a new run, or resumes the run in `workdir`.

    Args:
      config: a ConfigDict; None resumes the run that `workdir` holds.
      workdir: the run directory.
      changes: {"section.key": value} to change in the config. For an existing run only keys that do
        not change results are allowed, and they apply to this start only.
      restart: whether a run that was trained but has no readable checkpoint starts anew.
      extend: whether to continue a finished run to `train.num_steps` of the config or the changes.
      loggers: `Logger`s that get metrics and images in addition to the run's own metrics.jsonl and
        samples/; None logs to TensorBoard.
      profile: (first, last) step of a trace; see `profiling`.

    Raises:
      ValueError: for an invalid config or folder; in all processes if in any.
      FloatingPointError: if the loss or the gradient stayed non-finite.
      Interrupted: after SIGINT or SIGTERM; the message says what is saved.
      SaveError: if a checkpoint and its retry could not be written.
      Exception: of a training step, after saving the state before it if possible; a note says which
        step is saved.
    """
    start_time, workdir = time.monotonic(), paths.parse(workdir, "workdir")
    loggers = by_name(["tensorboard"]) if loggers is None else loggers
    if restart and extend:
        raise ValueError("--restart starts a run anew and --extend continues one: use one of them")
    config = run_directory.chosen_config(workdir, config, changes, extend=extend)
    hosts.join(config, restart=restart, extend=extend)
    # An invalid config or missing data must not leave a run directory behind.
    with processes.raise_together():
        config = build.resolve(config)
        experiment = build.build(config)
        profiling.check(profile, experiment.loop.num_steps)
        data = _open_data(experiment)
        capacity.check_state(experiment.abstract_state())
    _check_same_data(data)
    warm = None
    if experiment.start.init_from and resume.is_new(workdir, restart):
        warm = warm_start.read(experiment, workdir)
    opened = run_directory.open_for_training(workdir, config, extend=extend)
    with Interrupt() as interrupt, opened:
        loop = experiment.loop
        with Checkpoints(
            workdir, keep=loop.keep_checkpoints, keep_best=loop.keep_best_checkpoints
        ) as checkpoints:
            start_logging = partial(Loggers(loggers).started, workdir, config)
            run = _Run(experiment, workdir, checkpoints, interrupt, restart, warm, start_logging)
            run.run(profile, start_time)


class _Run:
    """A run in one process: restores, trains, evaluates, draws and saves."""

    def __init__(self, experiment, workdir, checkpoints, interrupt, restart, warm, start_logging):
        self._experiment, self._loop = experiment, experiment.loop
        self._workdir, self._checkpoints, self._interrupt = workdir, checkpoints, interrupt
        self._restart, self._warm, self._start_logging = restart, warm, start_logging
        with processes.raise_together():
            self._data = _open_data(experiment)
        self._pending = None
        self._saver, self._drawing = CheckpointSaver(checkpoints), Drawing(experiment)
        if experiment.evaluation.every_steps:
            self._held_out = HeldOutEvaluator(
                experiment, experiment.evaluation.max_examples or None
            )

    def run(self, profile, start_time):
        self._state = self._restore_or_create()
        start, total = int(self._state.step), self._loop.num_steps
        unevaluated = self._evaluates_at(start) and not self._checkpoints.is_scored(start)
        if start >= total and not unevaluated:
            reporting.log(f"{self._workdir}: already trained for {start} steps")
            return
        with (
            self._start_logging(start) as self._loggers,
            reporting.progress(start, total, self._loop.batch_size) as self._progress,
            self._saver.saving_on_error(self._report),
            profiling.Profile(self._workdir, profile, start) as self._profile,
        ):
            self._saver.before_save = self._loggers.flush
            with processes.raise_together():
                self._goodput = Goodput(self._workdir, start, start_time)
            if unevaluated:
                self._evaluate_restored(start)
            if start < total:
                self._train_from(start)
            self._goodput.end(total)
        self._data.close()
        reporting.log(f"{self._workdir}: trained for {total} steps; {self._saver.describe()}")

    def _restore_or_create(self):
        restored = resume.restore(
            self._workdir,
            self._checkpoints,
            self._experiment.abstract_state(),
            restart=self._restart,
        )
        if restored is not None:
            state, data_state = restored
            self._data.set_state(data_state)
            reporting.log(f"{self._workdir}: resumed at step {int(state.step)}")
            return state
        state = self._experiment.create_state(self._next_images())
        self._data.set_state({**self._data.get_state(), "step": 0})
        return state if self._warm is None else self._apply_warm_start(self._warm, state)

    def _apply_warm_start(self, warm, state):
        """Replaces arrays of a fresh state by those of another run.

        The state is saved at once, so that resuming does not need the other run again.
        """
        self._warm, state = None, warm.apply_to(state)
        if not warm.has_spectral_vectors:
            state = self._experiment.settle_spectral_vectors(state)
        self._checkpoints.save(state, self._data.get_state())
        self._checkpoints.wait()
        reporting.log(f"{self._workdir}: {warm.describe()}")
        return state

    def _next_images(self):
        """Reads the next global batch and puts it on the devices."""
        return sharding.to_devices(self._experiment.mesh, next(self._data)["image"])

    def _train_from(self, start):
        update, images = self._experiment.train_step(), self._experiment.abstract_images()
        with progress.waiting("compiling the training step"):
            update = update.lower(self._state, images).compile()
        allocator.release_freed_memory()
        self._clock = progress.Clock(start, self._data, self._goodput.training_seconds)
        self._clipped = []
        for step in range(start + 1, self._loop.num_steps + 1):
            with self._profile.step(step):
                self._state, metrics = update(self._state, self._next_images())
            self._saver.update(self._state, self._data.get_state())
            # The metrics of the previous step are fetched while this step runs.
            self._report()
            self._pending = step, metrics
            with self._clock.paused():
                with self._clock.saving():
                    self._saver.check()
                self._profile.end_step(step, metrics)
            stop = self._stop()
            if stop or self._is_due(step):
                self._report()
                with self._clock.paused():
                    self._do_due_work(step, stop, metrics)
                    allocator.release_freed_memory()

    def _is_due(self, step):
        """Whether an evaluation, a checkpoint or a drawing is due after a step."""
        loop = self._loop
        others = (loop.checkpoint_every_steps, loop.images_every_steps)
        return self._is_last(step) or self._evaluates_at(step) or any(_due(step, e) for e in others)

    def _do_due_work(self, step, stop, metrics):
        """Evaluates, saves and draws, whatever is due after a step, and stops after a signal."""
        loop, last, scores = self._loop, self._is_last(step), None
        if last:
            self._check_end(step, metrics)
        evaluates = self._evaluates_at(step)
        if evaluates and not stop:
            scores = self._evaluate(step)
            self._saver.set_scores(scores)
            stop = self._stop()
        best = scores and loop.keep_best_checkpoints
        if last or stop or best or _due(step, loop.checkpoint_every_steps):
            with self._clock.saving():
                self._saver.save(wait=bool(last or stop))
        if last or (not stop and _due(step, loop.images_every_steps)):
            for name, images in self._drawing(self._state.variables, step).items():
                self._loggers.images(step, name, images)
        if stop and (not last or (evaluates and scores is None)):
            self._raise_interrupted(step, stop)

    def _raise_interrupted(self, step, stop):
        newest = self._saver.latest_step()
        if newest is None:
            raise Interrupted(
                f"stopped at step {step}: no update was finite, nothing is saved", stop
            )
        raise Interrupted(f"saved at step {newest}; the same command resumes", stop)

    def _stop(self):
        """The signal that a host has received, or 0.

        All hosts get it after the same step, or at the same point of an evaluation.
        """
        return self._interrupt.stop()

    def _is_last(self, step):
        return step == self._loop.num_steps

    def _evaluates_at(self, step):
        every = self._experiment.evaluation.every_steps
        return bool(every and step) and (self._is_last(step) or _due(step, every))

    def _evaluate_restored(self, step):
        """Evaluates the restored state, if a signal stopped the run before its evaluation."""
        scores = self._evaluate(step)
        if scores is None:
            self._raise_interrupted(step, self._stop())
        self._checkpoints.add_metrics(step, scores)

    def _evaluate(self, step):
        """Evaluates held-out images and logs a row of metrics; None if a signal interrupts it."""
        scores = self._held_out(self._state.variables, stopped=self._stop)
        if scores is not None:
            row = {f"{self._held_out.split}/{name}": value for name, value in scores.items()}
            self._loggers.metrics(step, row)
            reporting.log(f"step {step}: {self._held_out.split} NELBO {scores['nelbo']:.4f} nats")
        return scores

    def _report(self):
        """Checks and reports the metrics of the previous step, unless that has been done."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        self._check_finite(step, metrics)
        self._clipped.append(float(metrics.get("clipped_fraction", 0.0)))
        self._progress.advance(step)
        if step == 1 or self._is_last(step) or _due(step, self._loop.log_every_steps):
            timing = self._clock.lap(step, self._loop.batch_size)
            timing["goodput"] = self._goodput(timing["training_seconds"])
            row = reporting.train_row(jax.device_get(metrics), timing)
            if "clipped_fraction" in metrics:
                row["train/clipped_fraction"] = float(np.mean(self._clipped))
            self._clipped = []
            row["train/skipped_examples"] = self._data.skipped
            self._loggers.metrics(step, row)
            self._progress.report(step, row)

    def _check_finite(self, step, metrics):
        in_a_row = int(metrics["nonfinite_steps"])
        if not in_a_row:
            return
        bad = [name for name in TERMS if not np.isfinite(metrics[name])]
        reporting.log(f"step {step}: {', '.join(bad)} not finite, update skipped")
        if in_a_row >= self._loop.max_nonfinite_steps:
            self._saver.try_to_save()
            saved = self._saver.latest_step()
            good = "no checkpoint yet" if saved is None else f"last good checkpoint: step {saved}"
            raise FloatingPointError(
                f"step {step}: {bad[0]} is not finite, for {in_a_row} steps in a row; {good}"
            )

    def _check_end(self, step, metrics):
        """Raises FloatingPointError if the last updates of the run were skipped."""
        in_a_row = int(metrics["nonfinite_steps"])
        if in_a_row:
            self._saver.try_to_save()
            raise FloatingPointError(
                f"step {step}, the last: the updates of {in_a_row} steps in a row were not finite "
                f"and were skipped; {self._saver.describe()}"
            )


def _open_data(experiment):
    batch_size = experiment.loop.batch_size
    micro_batches = experiment.loop.accumulation_steps
    sharding.check_batch_size(experiment.mesh, batch_size, "train.batch_size", micro_batches)
    return pipeline.train_iterator(
        experiment.data,
        batch_size=batch_size,
        seed=experiment.seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )


def _check_same_data(data):
    """Raises ValueError if the hosts' data sets differ in size, because they share each batch."""
    counts = processes.all_gather(data.get_state()["num_examples"])
    if len(set(counts)) > 1:
        raise ValueError(
            "all hosts need the same data set: the numbers of training images that processes 0 to "
            f"{len(counts) - 1} find are {', '.join(map(str, counts))}"
        )


def _due(step, every):
    return bool(every) and step % every == 0
