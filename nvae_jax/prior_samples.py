"""Draws samples from a model's prior."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.typing import VariableDict
from numpy.typing import ArrayLike

from nvae_jax import pictures, sharding, steps
from nvae_jax.experiment import Experiment
from nvae_jax.interrupt import interruptible
from nvae_jax.likelihoods import crop
from nvae_jax.noise import group_temperatures
from nvae_jax.ops import compiler
from nvae_jax.programs import shared
from nvae_jax.recalibrate import recalibrated_statistics
from nvae_jax.state import Snapshot


@dataclass(frozen=True)
class PriorSamples:
    """Settings with which samples are drawn from a run.

    Attributes:
      num: number of samples.
      temperature: temperature of the prior: one number, or one per scale, coarsest first.
      decoder: "mean" for the mean of the pixels' distribution, "sample" for a draw from it.
      decoder_temperature: temperature of a draw from the pixels' distribution.
      recalibrate_bn: whether to replace batch norm's running statistics by those of prior samples.
      recalibration: method of recalibration, one of `recalibrate.METHODS`.
      passes: number of passes of recalibration; None uses the config's.
      batch_size: samples drawn at a time; None uses the config's. The images do not depend on it.
      seed: seed of the samples.
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
        """Raises ValueError, naming the setting, if one is out of range for this model."""
        if self.decoder not in ("mean", "sample"):
            raise ValueError(f"decoder must be mean or sample, not {self.decoder!r}")
        _check(self.num, self.images_at_a_time(experiment), self.decoder_temperature)
        group_temperatures(experiment.model.hierarchy, self.temperature)

    def images_at_a_time(self, experiment: Experiment) -> int:
        """The batch size, by default the config's."""
        return experiment.evaluation.batch_size if self.batch_size is None else self.batch_size

    def metadata(self, experiment: Experiment) -> dict[str, Any]:
        """Everything that the samples depend on, apart from the model, as {name: value}."""
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
        """The run's variables, with recalibrated statistics if `recalibrate_bn` is set."""
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
        """Draws the samples from number `first` on, in batches; see `sample_images`."""
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
    """Draws images from the prior and yields them in batches (B, H, W, C), without padding.

    They are integers as `pictures.to_values` returns them. Image i depends on the seed and on i,
    not on the batch size, `num` or the devices (except for rounding errors of float32, which can
    change a pixel by one).

    Args:
      experiment: an `Experiment`.
      variables: the model's variables.
      num: number of images.
      temperature: temperature of the prior, positive: one number, or one per scale, coarsest
        first.
      seed: seed of the images.
      batch_size: images drawn at a time, over all devices.
      draw_pixels: whether to draw from the decoder's distribution instead of taking its mean.
      decoder_temperature: temperature of that draw, positive.
      first: number of the first image, to continue after an earlier call.
      rounded: whether to round to integers; otherwise batches are float32 in [0, 1].

    Raises:
      ValueError: if a number or temperature is not positive.
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
            batch = crop(np.asarray(images), experiment.data.padding)[: first + num - start]
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
