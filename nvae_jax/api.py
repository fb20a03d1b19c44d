"""Applies a trained model to NumPy arrays.

    from nvae_jax import api

    run = api.load("runs/fashion")
    images = run.sample(16, temperature=0.7)
    latents = run.encode(images)
    copies = run.reconstruct(images)
    nats = run.log_prob(images, num_samples=10)
    scores = api.score(run, images, num_samples=10)
    best, samples = run.restore(images, mask=mask)

Images are (N, H, W, C) float32 in [0, 1], of the data set's size without padding. Models of binary
images binarise their inputs at random. Inputs can also be uint8, or, for models of more than 8
bits, uint16 with values of that number of bits. Latents are a list with one array (N, h, w, z) per
group, coarsest first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from nvae_jax import (
    capacity,
    checks,
    inference,
    inputs,
    loading,
    paths,
    processes,
    scores,
    sharding,
)
from nvae_jax.experiment import Experiment
from nvae_jax.likelihoods import crop
from nvae_jax.models.latents import GIVEN, POSTERIOR, PRIOR
from nvae_jax.noise import (
    describe_temperature,
    group_temperatures,
    image_keys,
    latent_noise,
)
from nvae_jax.recalibrate import recalibrated_statistics
from nvae_jax.restoration.methods import Restorer
from nvae_jax.restoration.restore import Restored
from nvae_jax.restoration.restore import restore as restore  # exported as api.restore
from nvae_jax.scores import score as score  # exported as api.score
from nvae_jax.state import Snapshot


def load(
    workdir: str | Path,
    batch_size: int | None = None,
    which: str | int = "latest",
    changes: Mapping[str, Any] | None = None,
    *,
    join: bool = False,
) -> "Run":
    """Loads a checkpoint of the run in `workdir`.

    Args:
      workdir: a run directory.
      batch_size: number of images computed at a time; None uses the config's for evaluation.
      which: the checkpoint: "latest", "best" (by the held-out NELBO during training), or a step.
      changes: {"section.key": value} of keys that can differ from the run's config, such as
        {"data.dir": "/data"}; see `run_directory.CHANGEABLE`.
      join: whether to join the other processes of a cluster, if this process belongs to one. All
        processes then call the same methods with the same arguments; the work is divided among all
        devices, and every process gets the whole result.

    Raises:
      ValueError: if there is no run, or no such checkpoint that can be read.
    """
    experiment, state = loading.load_run(workdir, which, changes=changes, join=join)
    size = experiment.evaluation.batch_size if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}")
    programs = inference.programs(experiment.model, experiment.likelihood)
    with processes.raise_together():
        capacity.check_memory(experiment, batch_size=size)
    return Run(paths.parse(workdir), experiment, state, size, programs, lambda: state.variables)


@dataclass(frozen=True)
class Run:
    """A trained model, loaded by `load`.

    Attributes:
      workdir: the run directory.
      experiment: the `Experiment` that its config describes.
      state: the variables of its checkpoint, a `state.Snapshot`.
      batch_size: number of images computed at a time; results do not depend on it.
      programs: the compiled passes.
      make_variables: function that returns the variables; called at the first use of `variables`.
      recalibration: description of how batch norm was recalibrated, for metadata.
    """

    workdir: Path
    experiment: Experiment = field(repr=False)
    state: Snapshot = field(repr=False)
    batch_size: int
    programs: inference.Programs = field(repr=False)
    make_variables: Callable[[], Any] = field(repr=False)
    recalibration: str = "none"

    @cached_property
    def variables(self) -> dict[str, Any]:
        """The model's variables, with running or recalibrated batch statistics."""
        return sharding.replicate(self.make_variables())

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(h, w, z) of each group, coarsest first."""
        return self.experiment.model.latent_shapes()

    @property
    def num_groups(self) -> int:
        """The number of latent groups."""
        return len(self.latent_shapes)

    @property
    def num_bits(self) -> int:
        """The number of bits of an image value."""
        return self.experiment.data.num_bits

    def metadata(self, **more: Any) -> dict[str, Any]:
        """The metadata of files that are made with this run, with `more` added."""
        model = self.experiment.metadata(self.state)
        return {**model, "recalibration": self.recalibration, **more}

    def recalibrated(
        self,
        temperature: ArrayLike = 1.0,
        passes: int | None = None,
        method: str = "pooled",
        **options: Any,
    ) -> "Run":
        """Returns this run with batch-norm statistics computed from its own prior samples, which
        makes samples better. They are computed when they are first used.

        Args:
          temperature: temperature at which samples will be drawn: a number, or one per scale,
            coarsest first.
          passes: number of passes of sampling; None uses the config's.
          method: "pooled" (exact) or "published" (a moving average).
          **options: options of `recalibrate.recalibrated_statistics`, such as `progress`.
        """
        group_temperatures(self.experiment.model.hierarchy, temperature)
        settings = self.experiment.evaluation
        passes = settings.recalibration_passes if passes is None else passes

        def make_variables():
            statistics = recalibrated_statistics(
                self.workdir,
                self.experiment,
                self.state,
                temperature=temperature,
                passes=passes,
                method=method,
                **options,
            )
            return {**self.state.variables, "batch_stats": statistics}

        return replace(
            self,
            make_variables=make_variables,
            recalibration=f"{method}, {passes} passes of {settings.recalibration_batch_size} "
            f"images at temperature {describe_temperature(temperature)}",
        )

    def encode(
        self, images: ArrayLike, *, temperature: float = 1.0, seed: int = 0
    ) -> list[np.ndarray]:
        """Draws latents from the posterior.

        Args:
          images: (N, H, W, C) in [0, 1].
          temperature: factor of the posterior's standard deviation; 0 returns means (each group's
            mean given the means of the coarser groups).
          seed: seed of the draw and of binarisation.

        Returns:
          latents, a list of (N, h, w, z).
        """
        if not 0 <= temperature < np.inf:
            raise ValueError(f"temperature must not be negative, not {temperature}")
        temperatures = np.full(self.num_groups, temperature, np.float32)
        sources = np.full(self.num_groups, POSTERIOR)
        prepared = self.prepare(images, seed)
        _, latents, _ = self.compose(sources, temperatures, images=prepared, seed=seed)
        return latents

    def decode(
        self, latents: Sequence[np.ndarray], *, temperature: ArrayLike = 1.0, seed: int = 0
    ) -> np.ndarray:
        """Decodes latents to images.

        Args:
          latents: a list of (N, h, w, z) for the coarsest groups, or for all. The other groups are
            drawn from the prior.
          temperature: temperature of the prior: one number, or one per scale, coarsest first.
          seed: seed of the draws from the prior.

        Returns:
          the decoder's mean images (N, H, W, C) in [0, 1].
        """
        latents = checks.latents(latents, self.latent_shapes)
        given = np.arange(self.num_groups) < len(latents)
        temperatures = group_temperatures(self.experiment.model.hierarchy, temperature)
        sources = np.where(given, GIVEN, PRIOR)
        return self.compose(sources, temperatures, latents=latents, seed=seed)[0]

    def standardize(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Converts latents to the prior's noise: (z - mean) / scale given the coarser groups.

        `from_noise` is the inverse: it decodes the noise to the same images.
        """
        latents = checks.latents(latents, self.latent_shapes, complete=True)
        sources = np.full(self.num_groups, GIVEN)
        return self.compose(sources, np.ones(self.num_groups), latents=latents)[2]

    def from_noise(
        self, noise: Sequence[np.ndarray], *, temperature: ArrayLike = 1.0
    ) -> np.ndarray:
        """Decodes the prior's noise, a list with one (N, h, w, z) array per group, to the decoder's
        mean images (N, H, W, C) in [0, 1]."""
        noise = checks.latents(noise, self.latent_shapes, complete=True)
        temperatures = group_temperatures(self.experiment.model.hierarchy, temperature)
        sources = np.full(self.num_groups, PRIOR)
        return self.compose(sources, temperatures, latents=noise)[0]

    def draw_noise(self, num: int, seed: int = 0) -> list[np.ndarray]:
        """Draws the prior's noise for `num` images; image i depends only on `seed` and i."""
        self.check_memory(num)
        keys = image_keys(jax.random.key(seed), np.arange(num))
        return [np.asarray(n) for n in latent_noise(self.experiment.model, keys)]

    def sample(self, num: int, *, temperature: ArrayLike = 1.0, seed: int = 0) -> np.ndarray:
        """Draws from the prior and returns the decoder's mean images (num, H, W, C) in [0, 1].

        A run that was `recalibrated` at the same temperature gives better samples.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1, not {num}")
        temperatures = group_temperatures(self.experiment.model.hierarchy, temperature)
        sources = np.full(self.num_groups, PRIOR)
        # Unlike `steps.make_sample_step`, this program is compiled for the other methods anyway.
        return self.compose(sources, temperatures, num=num, seed=seed)[0]

    def reconstruct(
        self,
        images: ArrayLike,
        *,
        groups: int | None = None,
        temperature: ArrayLike = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """Encodes images and returns the decoder's mean images (N, H, W, C) in [0, 1].

        Args:
          images: (N, H, W, C) in [0, 1].
          groups: number of groups, from the coarsest, to draw from the posterior; the others are
            drawn from the prior. None draws all from the posterior.
          temperature: temperature of the prior: one number, or one per scale, coarsest first.
          seed: seed of the draws and of binarisation.
        """
        groups = self.num_groups if groups is None else groups
        if not 0 <= groups <= self.num_groups:
            raise ValueError(f"groups must be from 0 to {self.num_groups}, not {groups}")
        inferred = np.arange(self.num_groups) < groups
        prior = group_temperatures(self.experiment.model.hierarchy, temperature)
        temperatures = np.where(inferred, 1.0, prior)
        sources = np.where(inferred, POSTERIOR, PRIOR)
        prepared = self.prepare(images, seed)
        return self.compose(sources, temperatures, images=prepared, seed=seed)[0]

    def log_prob(self, images: ArrayLike, *, num_samples: int = 1, seed: int = 0) -> np.ndarray:
        """Computes the importance-weighted lower bound on log p(x) in nats, (N,).

        Args:
          images: (N, H, W, C) in [0, 1].
          num_samples: posterior draws per image: 1 gives the ELBO, more give a tighter bound.
          seed: seed of the draws and of binarisation.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        prepared = self.prepare(images, seed)
        batches = {"image": prepared, "index": np.arange(len(prepared))}
        weights = []
        for number in range(num_samples):
            key = jax.random.fold_in(jax.random.key(seed), number)
            step = partial(self.programs.log_weights, self.variables, key)
            weights.append(self.map_batches(step, batches))
        return np.logaddexp.reduce(weights, axis=0) - np.log(num_samples)

    def score(self, images: ArrayLike, **options: Any) -> dict[str, np.ndarray]:
        """Scores how similar images are to the training data; see `scores.score`."""
        return scores.score(self, images, **options)

    def restore(self, images: ArrayLike, **options: Any) -> Restored:
        """Restores images of which only a part is known; see `restoration.restore.restore`."""
        return restore(self, images, **options)

    @cached_property
    def restorer(self) -> Restorer:
        """The compiled methods of `restore`."""
        return Restorer(self.experiment)

    def prepare(self, images: ArrayLike, seed: int = 0, first: int = 0) -> np.ndarray:
        """Converts images to the model's input; see `inputs.to_model`."""
        return inputs.to_model(images, self.experiment.data, seed, first)

    def check_memory(self, num: int) -> None:
        """Raises ValueError if `num` images do not fit the memory."""
        with processes.raise_together():
            capacity.check_memory(self.experiment, num=num)

    def compose(
        self,
        sources: ArrayLike,
        temperatures: ArrayLike,
        *,
        images: np.ndarray | None = None,
        latents: Sequence[np.ndarray] = (),
        num: int | None = None,
        seed: int = 0,
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Draws each latent group from a source of its own and decodes; all other methods use it.

        Args:
          sources: (groups,), each `latents.PRIOR`, `POSTERIOR` or `GIVEN`, or a number between the
            first two, which mixes both draws.
          temperatures: (groups,).
          images: images for the posterior, from `prepare`.
          latents: a list of (N, h, w, z) for the coarsest groups: z for GIVEN groups, noise for the
            others. The noise of the remaining groups is drawn.
          num: number of images, if there are neither images nor latents.
          seed: seed of the noise.

        Returns:
          images (N, H, W, C) in [0, 1], latents, and latents standardised by the prior.
        """
        num = len(images) if images is not None else len(latents[0]) if len(latents) else num or 0
        self.check_memory(num)
        batches = {"index": np.arange(num), "latents": [np.asarray(z) for z in latents]}
        if images is not None:
            batches["image"] = images
        key, sources = jax.random.key(seed), np.asarray(sources, np.float32)
        temperatures = np.asarray(temperatures, np.float32)

        step = partial(self.programs.compose, self.variables, key, sources, temperatures)
        pictures, latents, noise = self.map_batches(step, batches)
        return crop(pictures, self.experiment.data.padding), list(latents), list(noise)

    def map_batches(self, step: Callable[[Any], Any], arrays: Mapping[str, Any]) -> Any:
        """Applies `step` to all rows of `arrays`, `batch_size` at a time; see
        `inference.map_batches`."""
        return inference.map_batches(step, arrays, self.batch_size)
