"""Samples of the prior: how they are drawn, and drawing them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.typing import VariableDict
from numpy.typing import ArrayLike

from nvae_jax import pictures, sharding, steps
from nvae_jax.build import Experiment
from nvae_jax.interrupt import interruptible
from nvae_jax.likelihoods import crop
from nvae_jax.noise import group_temperatures
from nvae_jax.ops import compiler
from nvae_jax.programs import shared
from nvae_jax.recalibrate import recalibrated_statistics
from nvae_jax.state import Snapshot


@dataclass(frozen=True)
class PriorSamples:
    """How many samples of a run, and how they are drawn.

    Attributes:
      num: samples.
      temperature: of the prior: one number, or one a scale, coarsest first.
      decoder: "mean" or "sample" of the pixels.
      decoder_temperature: of a sample of the pixels.
      recalibrate_bn: replace the running statistics of batch norm by those of prior samples.
      recalibration: how; one of `recalibrate.METHODS`.
      passes: of recalibration; None takes the config's.
      batch_size: samples at a time; None takes the config's. No image depends on it.
      seed: of the samples.
    """

    num: int
    temperature: ArrayLike = 1.0
    decoder: str = "mean"
    decoder_temperature: float = 1.0
    recalibrate_bn: bool = True
    recalibration: str = "pooled"
    passes: int | None = None
    batch_size: int | None = None
    seed: int = 0

    def check(self, experiment: Experiment) -> None:
        """Raises a ValueError that names what is out of range for this model."""
        if self.decoder not in ("mean", "sample"):
            raise ValueError(f"decoder must be mean or sample, not {self.decoder!r}")
        _check(self.num, self.images_at_a_time(experiment), self.decoder_temperature)
        group_temperatures(experiment.model.hierarchy, self.temperature)

    def images_at_a_time(self, experiment: Experiment) -> int:
        """The batch size, which is the config's where none is given."""
        return experiment.evaluation.batch_size if self.batch_size is None else self.batch_size

    def metadata(self, experiment: Experiment) -> dict[str, Any]:
        """{name: value} of all that the samples depend on, beside the model."""
        settings, temperatures = experiment.evaluation, np.atleast_1d(self.temperature).tolist()
        passes = settings.recalibration_passes if self.passes is None else self.passes
        size = settings.recalibration_batch_size
        return {
            "num": self.num,
            "temperature": temperatures[0] if len(temperatures) == 1 else temperatures,
            "seed": self.seed,
            "decoder": self.decoder,
            "decoder_temperature": self.decoder_temperature,
            "recalibration": self.recalibration if self.recalibrate_bn else "none",
            "recalibration_passes": passes if self.recalibrate_bn else 0,
            "recalibration_batch_size": size if self.recalibrate_bn else 0,
        }

    def variables(
        self, workdir: str | Path, experiment: Experiment, state: Snapshot
    ) -> Mapping[str, Any]:
        """The run's variables, with recalibrated statistics where they are asked for."""
        if not self.recalibrate_bn:
            return state.variables
        options: dict[str, Any] = {"passes": self.passes, "method": self.recalibration}
        statistics = recalibrated_statistics(
            workdir, experiment, state, temperature=self.temperature, **options
        )
        return {**state.variables, "batch_stats": statistics}

    def batches(
        self,
        workdir: str | Path,
        experiment: Experiment,
        state: Snapshot,
        *,
        first: int = 0,
        rounded: bool = True,
    ) -> Iterator[np.ndarray]:
        """Draws the samples from number `first` on, as `sample_images` does."""
        return sample_images(
            experiment,
            self.variables(workdir, experiment, state),
            num=self.num - first,
            temperature=self.temperature,
            seed=self.seed,
            batch_size=self.images_at_a_time(experiment),
            draw_pixels=self.decoder == "sample",
            decoder_temperature=self.decoder_temperature,
            first=first,
            rounded=rounded,
        )


def sample_images(
    experiment: Experiment,
    variables: VariableDict,
    *,
    num: int,
    temperature: ArrayLike = 1.0,
    seed: int = 0,
    batch_size: int = 100,
    draw_pixels: bool = False,
    decoder_temperature: float = 1.0,
    first: int = 0,
    rounded: bool = True,
) -> Iterator[np.ndarray]:
    """Yields `num` images from the prior in batches (B, H, W, C), without padding: uint8, or of
    models of more than 8 bits uint16 (`pictures.to_values`).

    Image i depends on the seed and on i, not on the batch size, `num` or the devices (but for the
    last bit of float32, which can round a pixel to the value beside it).

    Args:
      experiment: from `build.build`.
      variables: of the model.
      num: how many.
      temperature: of the prior, positive: one number, or one a scale, coarsest first.
      seed: of the images.
      batch_size: images drawn at a time, over all devices.
      draw_pixels: draw from the decoder's distribution instead of taking its mean.
      decoder_temperature: of that draw, positive.
      first: number of the first image, to go on where another call stopped.
      rounded: to integers; otherwise batches are float32 in [0, 1].

    Raises:
      ValueError: a number or temperature is not positive.
    """
    _check(num, batch_size, decoder_temperature)
    temperatures = group_temperatures(experiment.model.hierarchy, temperature)
    step = _program(experiment.model, experiment.likelihood, draw_pixels)
    key, variables = jax.random.key(seed), sharding.replicate(variables)
    batch_size = sharding.round_up(None, min(batch_size, num))

    def batches():
        for start in interruptible(range(first, first + num, batch_size)):
            indices = sharding.shard_batch(np.arange(start, start + batch_size))
            images = step(variables, key, indices, temperatures, decoder_temperature)
            uncut = crop(np.asarray(images), experiment.data.padding)
            batch = uncut[: first + num - start]
            yield pictures.to_values(batch, experiment.data.num_bits) if rounded else batch

    return batches()


@shared
def _program(model, likelihood, draw_pixels):
    step = steps.make_sample_step(model, likelihood, draw_pixels=draw_pixels)
    options = compiler.options(jax.default_backend())
    return jax.jit(sharding.gathered(step), compiler_options=options)


def _check(num, batch_size, decoder_temperature):
    for name, value in (("num", num), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not 0 < decoder_temperature < float("inf"):
        raise ValueError(f"decoder_temperature must be positive, not {decoder_temperature}")
