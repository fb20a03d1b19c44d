"""A trained model on NumPy arrays.

    from nvae_jax import api

    run = api.load("runs/fashion")
    images = run.sample(16, temperature=0.7)
    latents = run.encode(images)
    copies = run.reconstruct(images)
    nats = run.log_prob(images, num_samples=10)
    scores = api.score(run, images, num_samples=10)
    best, samples = run.restore(images, mask=mask)

Images are (N, H, W, C) float32 in [0, 1], of the size that the data set has, without padding; a
model of binary images binarises those it is given at random. uint8 will do as well, or for models
of more than 8 bits uint16 of values of so many bits. Latents are a list with one array (N, h, w, z)
a group, coarsest first.
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
    checkpoint,
    distributed,
    inputs,
    paths,
    progress,
    scores,
    sharding,
    steps,
)
from nvae_jax.build import Experiment
from nvae_jax.interrupt import interruptible
from nvae_jax.likelihoods import Likelihood, crop
from nvae_jax.models.latents import GIVEN, POSTERIOR, PRIOR
from nvae_jax.models.nvae import NVAE
from nvae_jax.noise import (
    describe_temperature,
    group_temperatures,
    image_keys,
    latent_noise,
)
from nvae_jax.programs import shared
from nvae_jax.recalibrate import recalibrated_statistics
from nvae_jax.restoration.methods import Restorer
from nvae_jax.restoration.restore import Restored
from nvae_jax.restoration.restore import restore as restore  # is api.restore
from nvae_jax.sample import describe_model
from nvae_jax.scores import score as score  # is api.score
from nvae_jax.state import Snapshot


def load(
    workdir: str | Path,
    batch_size: int | None = None,
    which: str | int = "latest",
    changes: Mapping[str, Any] | None = None,
    *,
    join: bool = False,
) -> "Run":
    """A checkpoint of the run in `workdir`, as a `Run`.

    Args:
      workdir: a run directory.
      batch_size: images that are computed at a time; None takes the config's for evaluation.
      which: "latest", "best" (by the held-out NELBO in training), or a step.
      changes: {"section.key": value} of keys that may differ from the run's config, such as
        {"data.dir": "/data"}; see `run_directory.FREE`.
      join: whether to join the other processes of a cluster, if this is one. They call the same
        methods with the same arguments; each gets the whole result, which all devices computed.

    Raises:
      ValueError: there is no run, or no such checkpoint that can be read.
    """
    experiment, state = checkpoint.load_run(workdir, which, changes=changes, join=join)
    size = experiment.evaluation.batch_size if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, not {size}")
    programs = _programs(experiment.model, experiment.likelihood)
    with distributed.raise_together():
        capacity.check_memory(experiment, batch_size=size)
    return Run(paths.parse(workdir), experiment, state, size, programs, lambda: state.variables)


@shared
def _programs(model, likelihood):
    return Programs(model, likelihood)


class Programs:
    """The compiled passes, shared by runs that differ in their variables only."""

    def __init__(self, model: NVAE, likelihood: Likelihood):
        self._model, self._likelihood = model, likelihood
        self.compose = jax.jit(sharding.gathered(self._compose))
        self.log_weights = jax.jit(sharding.gathered(self._log_weights))
        self.encode = jax.jit(steps.make_encode_step(model))
        self.score = jax.jit(sharding.gathered(scores.make_score_step(model, likelihood)))

    def _compose(self, variables, key, sources, temperatures, batch):
        noise = latent_noise(self._model, image_keys(key, batch["index"]))
        noise[: len(batch["latents"])] = batch["latents"]
        apply, features = partial(self._model.apply, variables), None
        if "image" in batch:
            features = apply(batch["image"], method="encode")
        draw: Any = apply(noise, sources, temperatures, features, method="compose")
        pairs = zip(draw.latents, draw.prior, strict=True)
        standard = [(z - prior.mean) / prior.scale for z, prior in pairs]
        return self._likelihood(draw.logits).mean(), draw.latents, standard

    def _log_weights(self, variables, key, batch):
        noise = latent_noise(self._model, image_keys(key, batch["index"]))
        out = self._model.apply(variables, batch["image"], noise=noise)
        return steps.bound_terms(self._likelihood, out, batch["image"])["log_weight"]


@dataclass(frozen=True)
class Run:
    """A trained model. Made by `load`.

    Attributes:
      workdir: the run directory.
      experiment: what its config describes.
      state: what inference uses of its checkpoint; nothing changes it.
      batch_size: images that are computed at a time; results do not depend on it.
      programs: the compiled passes.
      make_variables: gives `variables`, at their first use.
      recalibration: what is done to the batch statistics, in words.
    """

    workdir: Path
    experiment: Experiment = field(repr=False)
    state: Snapshot = field(repr=False)
    batch_size: int
    programs: Programs = field(repr=False)
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
        """How many latent groups there are."""
        return len(self.latent_shapes)

    @property
    def num_bits(self) -> int:
        """How many bits a value of the images has."""
        return self.experiment.data.num_bits

    def metadata(self, **more: Any) -> dict[str, Any]:
        """The metadata of files that are made with this run, with `more` added."""
        return {
            "model": describe_model(self.experiment),
            "step": self.state.step,
            "weights": self.state.fingerprint,
            "recalibration": self.recalibration,
            **more,
        }

    def recalibrated(
        self,
        temperature: ArrayLike = 1.0,
        passes: int | None = None,
        method: str = "pooled",
        **options: Any,
    ) -> "Run":
        """This run with batch statistics of its own prior samples, for sampling. They are computed
        when they are first used.

        Args:
          temperature: that samples will be drawn at: a number, or one a scale, coarsest first.
          passes: of sampling; None takes the config's.
          method: "pooled" (exact) or "published" (a moving average).
          **options: of `recalibrate.recalibrated_statistics`, such as `progress`.
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
          temperature: multiplies the posterior's scale; 0 gives means (of each group, given the
            means of those above it).
          seed: of the draw, and of binarisation.

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
          latents: a list of (N, h, w, z) for the coarsest groups, or for all.
          temperature: of the prior that the other groups are drawn from: one number, or one a
            scale, coarsest first.
          seed: of those draws.

        Returns:
          the decoder's mean images (N, H, W, C) in [0, 1].
        """
        latents = self._check_latents(latents)
        given = np.arange(self.num_groups) < len(latents)
        temperatures = group_temperatures(self.experiment.model.hierarchy, temperature)
        sources = np.where(given, GIVEN, PRIOR)
        return self.compose(sources, temperatures, latents=latents, seed=seed)[0]

    def standardize(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Turns latents into noise of the prior: (z - mean) / scale, given the groups above.

        The prior makes the same latents of that noise: `from_noise` decodes it.
        """
        latents = self._check_latents(latents, complete=True)
        sources = np.full(self.num_groups, GIVEN)
        return self.compose(sources, np.ones(self.num_groups), latents=latents)[2]

    def from_noise(
        self, noise: Sequence[np.ndarray], *, temperature: ArrayLike = 1.0
    ) -> np.ndarray:
        """Decodes noise of the prior, a list of (N, h, w, z), one a group, to images."""
        noise = self._check_latents(noise, complete=True)
        temperatures = group_temperatures(self.experiment.model.hierarchy, temperature)
        sources = np.full(self.num_groups, PRIOR)
        return self.compose(sources, temperatures, latents=noise)[0]

    def draw_noise(self, num: int, seed: int = 0) -> list[np.ndarray]:
        """Noise of the prior for `num` images: that of image i depends on `seed` and i alone."""
        self.check_room(num)
        keys = image_keys(jax.random.key(seed), np.arange(num))
        return [np.asarray(n) for n in latent_noise(self.experiment.model, keys)]

    def sample(self, num: int, *, temperature: ArrayLike = 1.0, seed: int = 0) -> np.ndarray:
        """The decoder's mean images (num, H, W, C) in [0, 1] of draws from the prior.

        `recalibrated` first, at the same temperature, makes them better.
        """
        if num < 1:
            raise ValueError(f"num must be at least 1, not {num}")
        temperatures = group_temperatures(self.experiment.model.hierarchy, temperature)
        sources = np.full(self.num_groups, PRIOR)
        # Not by `steps.make_sample_step`: this program is compiled for the other methods anyway.
        return self.compose(sources, temperatures, num=num, seed=seed)[0]

    def reconstruct(
        self,
        images: ArrayLike,
        *,
        groups: int | None = None,
        temperature: ArrayLike = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """The decoder's mean images of posterior draws.

        Args:
          images: (N, H, W, C) in [0, 1].
          groups: so many of the coarsest groups come from the posterior, the others from the
            prior; None takes all of them from the posterior.
          temperature: of the prior; one number, or one a scale, coarsest first.
          seed: of the draws, and of binarisation.
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
        """A lower bound on log p(x) in nats, (N,): importance-weighted over posterior draws.

        Args:
          images: (N, H, W, C) in [0, 1].
          num_samples: draws per image: with one it is the ELBO, with more it is tighter.
          seed: of the draws, and of binarisation.
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
        """Scores that tell whether images are like the training data; see `scores.score`."""
        return scores.score(self, images, **options)

    def restore(self, images: ArrayLike, **options: Any) -> Restored:
        """Draws what images could have been of which only a part is known; see
        `restoration.restore.restore`."""
        return restore(self, images, **options)

    @cached_property
    def restorer(self) -> Restorer:
        """The compiled methods of `restore`."""
        return Restorer(self.experiment)

    def prepare(self, images: ArrayLike, seed: int = 0, first: int = 0) -> np.ndarray:
        """Images as the model takes them; see `inputs.to_model`."""
        return inputs.to_model(images, self.experiment.data, seed, first)

    def check_room(self, num: int) -> None:
        """Raises ValueError where `num` images are more than the memory holds."""
        with distributed.raise_together():
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
        """Draws each group from its own source and decodes: the pass behind all other methods.

        Args:
          sources: (groups,) of `latents.PRIOR`, `POSTERIOR` and `GIVEN`, or of numbers between the
            first two, which mix both draws.
          temperatures: (groups,).
          images: for the posterior, as `prepare` makes them.
          latents: a list of (N, h, w, z): z of the GIVEN groups, noise of the others; groups that
            it does not reach draw their noise.
          num: how many images, where nothing else says it.
          seed: of the noise.

        Returns:
          images (N, H, W, C) in [0, 1], latents, and latents as noise of the prior.
        """
        num = len(images) if images is not None else len(latents[0]) if len(latents) else num or 0
        self.check_room(num)
        batches = {"index": np.arange(num), "latents": [np.asarray(z) for z in latents]}
        if images is not None:
            batches["image"] = images
        key, sources = jax.random.key(seed), np.asarray(sources, np.float32)
        temperatures = np.asarray(temperatures, np.float32)

        step = partial(self.programs.compose, self.variables, key, sources, temperatures)
        pictures, latents, noise = self.map_batches(step, batches)
        return crop(pictures, self.experiment.data.padding), list(latents), list(noise)

    def map_batches(self, step: Callable[[Any], Any], arrays: Mapping[str, Any]) -> Any:
        """`step` over all rows, `batch_size` at a time, so that one program serves any number.

        Args:
          step: maps `batch_size` rows to a tree of arrays of as many.
          arrays: a tree of arrays of N rows, one of which has the key "index".

        Returns:
          the tree of arrays of N rows, NumPy.
        """
        rows, results = len(arrays["index"]), []
        size = sharding.round_up(None, self.batch_size)
        starts = range(0, rows, size)
        if len(starts) > 1:
            starts = progress.bar("computing", starts, unit="batch")
        for start in interruptible(starts):
            stop = min(start + size, rows)
            cut = partial(_rows, start=start, stop=stop, size=size)
            result = jax.device_get(step(jax.tree.map(cut, arrays)))
            results.append(jax.tree.map(partial(_first, stop - start), result))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)

    def _check_latents(self, latents, complete=False):
        latents = [np.asarray(z) for z in latents]
        shapes = [z.shape for z in latents]
        wanted = self.latent_shapes[: None if complete else max(len(shapes), 1)]
        if [s[1:] for s in shapes] != list(wanted) or len({s[0] for s in shapes}) != 1:
            raise ValueError(
                f"latents have shapes {shapes}, where {len(wanted)} array(s) of (N, h, w, z) with "
                f"(h, w, z) = {list(wanted)} are wanted"
            )
        for group, z in enumerate(latents):
            if not np.issubdtype(z.dtype, np.floating):
                raise ValueError(f"latents must be float, but group {group} is {z.dtype}")
            if not np.isfinite(z).all():
                raise ValueError(f"latents must be finite, but some of group {group} are not")
        return [z.astype(np.float32) for z in latents]


def _rows(array, *, start, stop, size):
    """Rows of `array`, the first of them repeated up to `size`, on the devices."""
    part = array[start:stop]
    padding = np.repeat(part[:1], size - len(part), axis=0)
    return sharding.shard_batch(np.concatenate([part, padding]))


def _first(count, array):
    return array[:count]
