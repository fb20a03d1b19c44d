"""The training loop: knows no layer, no data set and no likelihood."""

import time

import jax
import numpy as np

from nvae_jax import (
    build,
    capacity,
    distributed,
    paths,
    pictures,
    reporting,
    resume,
    run_directory,
    sharding,
    steps,
)
from nvae_jax.checkpoint import Checkpoints
from nvae_jax.data import pipeline
from nvae_jax.evaluate import HeldOut
from nvae_jax.interrupt import Interrupt, Interrupted

TERMS = ("reconstruction", "kl", "spectral", "bn", "loss", "gradient_norm")


def train(config, workdir, changes=None, *, restart=False):
    """Trains, or resumes the run in `workdir`.

    Args:
      config: a ConfigDict; None resumes the run that `workdir` holds.
      workdir: the run directory.
      changes: {"section.key": value} to change in the config; for a run's own, only what does not
        change what it computes, and for this start only.
      restart: whether a run begins anew that was trained, and of which no checkpoint is left.

    Raises:
      ValueError: a bad config or folder, in all processes if in any.
      FloatingPointError: the loss or the gradient stayed non-finite.
      Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    workdir = paths.local(workdir, "workdir")
    config = run_directory.chosen_config(workdir, config, changes)
    distributed.initialize(build.build_distributed(config))
    # A bad config or missing data must not leave a run directory behind.
    with distributed.together():
        config = build.resolve(config)
        experiment = build.build(config)
        data = _open_data(experiment)
        capacity.check_state(experiment.abstract_state())
    _check_same_data(data)
    with Interrupt() as interrupt, run_directory.open_for_training(workdir, config):
        loop = experiment.loop
        with Checkpoints(
            workdir, keep=loop.keep_checkpoints, keep_best=loop.keep_best_checkpoints
        ) as checkpoints:
            _Run(experiment, workdir, checkpoints, interrupt, restart).run()


class _Run:
    """One process's share of a run: restores, steps, reports and saves."""

    def __init__(self, experiment, workdir, checkpoints, interrupt, restart):
        self._experiment, self._loop = experiment, experiment.loop
        self._workdir, self._checkpoints, self._interrupt = workdir, checkpoints, interrupt
        self._restart = restart
        with distributed.together():
            self._data = _open_data(experiment)
        self._agreement = distributed.Agreement()
        if experiment.evaluation.every_steps:
            self._held_out = HeldOut(experiment, experiment.evaluation.max_examples or None)

    def run(self):
        state = self._restore_or_create()
        start, total = int(state.step), self._loop.num_steps
        if start >= total:
            reporting.say(f"{self._workdir}: already trained for {start} steps")
            return
        with (
            reporting.metric_writer(self._workdir, start) as writer,
            reporting.progress(start, total, self._loop.batch_size) as progress,
        ):
            self._writer, self._progress = writer, progress
            self._clock = _Clock(start, self._data)
            self._step_all(state, start)
        self._data.close()

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
            reporting.say(f"{self._workdir}: resumed at step {int(state.step)}")
            return state
        state = self._experiment.create_state(self._next_images())
        self._data.set_state({**self._data.get_state(), "step": 0})
        return state

    def _next_images(self):
        """The next global batch, on the devices."""
        return sharding.to_devices(self._experiment.mesh, next(self._data)["image"])

    def _step_all(self, state, start):
        loop, update = self._loop, self._experiment.train_step()
        reporting.say("compiling the training step ...")
        pending = None
        for step in range(start + 1, loop.num_steps + 1):
            state, metrics = update(state, self._next_images())
            # The metrics of the step before are fetched while this one runs.
            self._report(pending)
            pending = (step, metrics)
            last = step == loop.num_steps
            stop, scores = self._stop(), None
            if not stop and self._evaluates_at(step):
                scores = self._evaluate(step, state)
                stop = self._stop()
            best = scores and loop.keep_best_checkpoints
            if last or stop or best or _due(step, loop.checkpoint_every_steps):
                self._report(pending)
                pending = None
                self._save(state, metrics, scores)
            if last or (not stop and _due(step, loop.images_every_steps)):
                self._draw(step, state)
            if stop and not last:
                raise Interrupted(f"saved at step {step}; the same command resumes", stop)

    def _stop(self):
        """The signal that any of the hosts has received, or 0: all of them stop at the same step,
        or in the middle of an evaluation."""
        return self._agreement(self._interrupt.received or 0)

    def _evaluates_at(self, step):
        every = self._experiment.evaluation.every_steps
        return every and (step == self._loop.num_steps or _due(step, every))

    def _evaluate(self, step, state):
        """The held-out images' scores, in a row of their own; None where a signal came between."""
        scores = self._held_out(state.variables, stopped=self._stop)
        if scores is not None:
            row = {f"{self._held_out.split}/{name}": value for name, value in scores.items()}
            self._writer.scalars(step, row)
            reporting.say(f"step {step}: {self._held_out.split} NELBO {scores['nelbo']:.4f} nats")
        return scores

    def _save(self, state, metrics, scores):
        # A state whose last updates were skipped is good, but says nothing new.
        if not int(metrics["nonfinite_steps"]):
            self._checkpoints.save(state, self._data.get_state(), scores)

    def _report(self, pending):
        if pending is None:
            return
        step, metrics = pending
        self._check_finite(step, metrics)
        self._progress.advance(step)
        if step == 1 or step == self._loop.num_steps or _due(step, self._loop.log_every_steps):
            rate, wait = self._clock.lap(step, self._loop.batch_size)
            row = reporting.train_row(jax.device_get(metrics), rate, wait)
            row["train/skipped_examples"] = self._data.skipped
            self._writer.scalars(step, row)
            self._progress.report(step, row)

    def _check_finite(self, step, metrics):
        in_a_row = int(metrics["nonfinite_steps"])
        if not in_a_row:
            return
        bad = [name for name in TERMS if not np.isfinite(metrics[name])]
        reporting.say(f"step {step}: {', '.join(bad)} not finite, update skipped")
        if in_a_row >= self._loop.max_nonfinite_steps:
            saved = self._checkpoints.latest_step()
            good = "no checkpoint yet" if saved is None else f"last good checkpoint: step {saved}"
            raise FloatingPointError(
                f"step {step}: {bad[0]} is not finite, for {in_a_row} steps in a row; {good}"
            )

    def _draw(self, step, state):
        """Grids of samples and of reconstructions (above: the images, below: their copies)."""
        experiment, count = self._experiment, self._loop.num_images
        key = jax.random.fold_in(jax.random.key(experiment.seed), step)
        sample = steps.make_sample_step(experiment.model, experiment.likelihood, count)
        everywhere = sharding.replicated(experiment.mesh)
        sample = jax.jit(sample, out_shardings=everywhere)
        self._writer.images(step, "samples", sample(state.variables, key, 1.0))
        split = pipeline.resolve_split(experiment.data, "test")
        images = pipeline.preview(experiment.data, split, count // 2)
        reconstruct = steps.make_reconstruct_step(experiment.model, experiment.likelihood)
        copies = jax.jit(reconstruct, out_shardings=everywhere)(state.variables, images, key)
        self._writer.images(step, "reconstructions", pictures.pair_rows(images, copies))


class _Clock:
    """Images per second, and the fraction of time spent waiting for data, between two rows."""

    def __init__(self, step, data):
        self._data = data
        self._mark(step)

    def _mark(self, step):
        self._step, self._time, self._wait = step, time.perf_counter(), self._data.wait_seconds

    def lap(self, step, batch_size):
        seconds = time.perf_counter() - self._time
        rate = (step - self._step) * batch_size / seconds
        wait = (self._data.wait_seconds - self._wait) / seconds
        self._mark(step)
        return rate, wait


def _open_data(experiment):
    batch_size = experiment.loop.batch_size
    parts = experiment.loop.accumulation_steps
    sharding.check_batch_size(experiment.mesh, batch_size, "train.batch_size", parts)
    return pipeline.train_iterator(
        experiment.data,
        batch_size=batch_size,
        seed=experiment.seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )


def _check_same_data(data):
    """Refuses hosts that have other pictures: each would take its part of other batches."""
    counts = distributed.exchange(data.get_state()["num_examples"])
    if len(set(counts)) > 1:
        raise ValueError(
            "all hosts need the same data set: the numbers of training images that processes 0 to "
            f"{len(counts) - 1} find are {', '.join(map(str, counts))}"
        )


def _due(step, every):
    return bool(every) and step % every == 0
