"""Draws samples and reconstructions during training."""

from typing import Any

import jax
import numpy as np

from nvae_jax import pictures, sharding, steps
from nvae_jax.data import pipeline
from nvae_jax.experiment import Experiment
from nvae_jax.ops import compiler
from nvae_jax.programs import shared


class Drawing:
    """Draws images on all devices of the mesh with two programs, compiled at the first call.

    Args:
      experiment: an `Experiment`.
    """

    def __init__(self, experiment: Experiment):
        self._experiment, self._mesh = experiment, experiment.mesh
        self._count = experiment.loop.num_images
        self.sample, self.reconstruct = _programs(
            experiment.model, experiment.likelihood, self._mesh
        )

    def __call__(self, variables: Any, step: int) -> dict[str, np.ndarray]:
        """Draws samples and reconstructs held-out images.

        Args:
          variables: the model's variables.
          step: number of updates done, which the random draws depend on.

        Returns:
          {"samples": images, "reconstructions": images}, each (N, H, W, C) in [0, 1]. In a square
          grid each row of held-out images stands above the row of their reconstructions.
        """
        key = jax.random.fold_in(jax.random.key(self._experiment.seed), step)
        indices = np.arange(sharding.round_up(self._mesh, self._count))
        samples = np.asarray(self.sample(variables, key, indices, 1.0))[: self._count]
        images = self._held_out()
        size = sharding.round_up(self._mesh, len(images))
        padded = np.concatenate([images, np.zeros((size - len(images), *images.shape[1:]))])
        local = np.split(padded.astype(np.float32), jax.process_count())[jax.process_index()]
        copies = self.reconstruct(variables, sharding.to_devices(self._mesh, local), key)
        copies = np.asarray(copies)[: len(images)]
        return {"samples": samples, "reconstructions": pictures.pair_rows(images, copies)}

    def _held_out(self):
        data = self._experiment.data
        return pipeline.preview(data, pipeline.resolve_split(data, "test"), -(-self._count // 2))


@shared
def _programs(model, likelihood, mesh):
    """Returns the jitted steps (sample, reconstruct)."""
    sample = steps.make_sample_step(model, likelihood)
    reconstruct = steps.make_reconstruct_step(model, likelihood)
    return _compiled(sample, mesh), _compiled(reconstruct, mesh)


def _compiled(step, mesh):
    def on_all_devices(*arguments):
        # Each device draws its shard of the images; `out_shardings` then gathers all of them.
        images = step(*arguments)
        return jax.lax.with_sharding_constraint(images, sharding.over_batch(mesh))

    return jax.jit(
        on_all_devices,
        out_shardings=sharding.replicated(mesh),
        # A grid takes a moment anyway, and its two programs would take longer to compile than it.
        compiler_options=compiler.options(mesh.devices.flat[0].platform, runs_once=True),
    )
