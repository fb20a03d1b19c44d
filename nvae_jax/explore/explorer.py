"""Computes what the page shows from a run.

All batches have the same size, so that all programs can be compiled at the start.
"""

import functools
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nvae_jax import (
    api,
    capacity,
    extras,
    inputs,
    pictures,
    posterior_moments,
    progress,
    recalibrate,
    sharding,
)
from nvae_jax.api import Run
from nvae_jax.data import images as images_lib
from nvae_jax.explore import requests, uploads
from nvae_jax.interpolate import slerp
from nvae_jax.models.latents import GIVEN, POSTERIOR, PRIOR
from nvae_jax.noise import describe_temperature, group_temperatures
from nvae_jax.traverse import check_group

MAX_CACHED, MAX_CACHED_BYTES = 32, 2**30  # results kept in memory
MAX_RECALIBRATED = 8  # recalibrated runs kept in memory; their statistics are also on disk

Watch = Callable[[str, Iterable], Iterable]


@dataclass(frozen=True)
class Drawn:
    """Images with their latents.

    Attributes:
      run: the run, with the batch statistics used for these images.
      images: (N, H, W, C) in [0, 1].
      latents: a list of (N, h, w, z), coarsest first.
      noise: the latents standardised by the prior, a list of (N, h, w, z).
    """

    run: Run
    images: np.ndarray
    latents: list[np.ndarray]
    noise: list[np.ndarray]


class Explorer:
    """Answers requests, one at a time.

    Args:
      run: an `api.Run`; its batch size is the number of images per panel.
    """

    def __init__(self, run: Run):
        self.run = run
        self._watch: Watch = lambda what, items: items
        size = capacity.example_bytes(run.experiment) * run.batch_size
        num_cached = min(MAX_CACHED, 2 + MAX_CACHED_BYTES // size)
        self._drawn = functools.lru_cache(num_cached)(self._draw)
        self._recalibrated = functools.lru_cache(MAX_RECALIBRATED)(self._recalibrate)
        self._moments = jax.jit(posterior_moments.make_moment_step(run.experiment.model))

    def describe(self) -> dict[str, Any]:
        """Describes the run for the page, as JSON."""
        hierarchy = self.run.experiment.model.hierarchy
        return {
            "name": self.run.workdir.resolve().name,
            "model": self.run.experiment.describe(),
            "step": self.run.state.step,
            "num": self.run.batch_size,
            "scales": [hierarchy.size(s) for s in reversed(range(hierarchy.num_scales))],
            "groups": [hierarchy.num_scales - 1 - scale for scale in hierarchy.scale_of_group()],
            "largest_upload": uploads.LARGEST,
        }

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image, without padding."""
        return self.run.experiment.data.unpadded_shape

    def compile(self, watch: Watch) -> None:
        """Compiles all programs.

        Args:
          watch: as for `answer`.
        """
        blank = images_lib.encode(pictures.to_range(np.zeros(self.image_shape), self.run.num_bits))
        image = requests.Picture(requests.Encode(blank, 0), 0)
        steps = [
            lambda: self._draw(requests.Samples(0, (1.0,), False)),
            lambda: self._draw(image.request),
            lambda: self._divergence(self._prepare(image)),
            lambda: self._recalibrate_briefly(),
        ]
        for step in progress.bar("compiling", watch("compiling", steps), unit="program", total=4):
            step()

    def _recalibrate_briefly(self):
        experiment, state = self.run.experiment, self.run.state
        size = experiment.evaluation.recalibration_batch_size
        recalibrate.recalibrate(
            experiment.model,
            state.variables,
            jax.random.key(0),
            passes=3,  # enough to compile all programs of a longer recalibration
            batch_size=size,
        )

    def answer(self, request: requests.Request, watch: Watch) -> dict[str, Any]:
        """Answers a request with JSON, in which PNGs and files are in base64.

        Args:
          request: a request from `requests.parse`.
          watch: (what, items) -> items, which wraps the steps of long computations to show their
            progress; an exception that it raises ends the computation.

        Raises:
          ValueError: if the run has no such group, scale or image.
        """
        self._watch = watch
        if isinstance(request, requests.Divergence):
            return self.divergence(request.of)
        if isinstance(request, requests.Download):
            name, content = self.file(request.of, request.ending)
            return {"name": name, "content": uploads.to_text(content)}
        drawn = self._drawn(request)
        encoded = [images_lib.encode(image) for image in pictures.to_uint8(drawn.images)]
        return {
            "images": list(map(uploads.to_text, encoded)),
            "statistics": drawn.run.recalibration,
        }

    def draw(self, request: requests.Drawing) -> Drawn:
        """Computes the images of a request. Raises ValueError as `answer`."""
        return self._drawn(request)

    def _picture(self, picture: requests.Picture) -> tuple[Drawn, slice]:
        drawn = self._drawn(picture.request)
        if picture.index >= len(drawn.images):
            raise ValueError(f"index must be from 0 to {len(drawn.images) - 1}")
        return drawn, slice(picture.index, picture.index + 1)

    @functools.singledispatchmethod
    def _draw(self, request: Any) -> Drawn:
        raise ValueError(f"nothing is drawn for {request}")

    @_draw.register
    def _(self, request: requests.Samples) -> Drawn:
        temperatures = self._temperatures(request.temperature)
        run = self._recalibrated(request.temperature) if request.recalibrate else self.run
        return self._compose(run, PRIOR, temperatures, self._fresh(request.seed))

    @_draw.register
    def _(self, request: requests.Encode) -> Drawn:
        image = self.run.prepare(
            uploads.read(request.image, self.run.experiment.data), request.seed
        )
        noise = [n[:1] for n in self._fresh(request.seed)]
        return self._compose(self.run, POSTERIOR, np.ones(self.run.num_groups), noise, image)

    @_draw.register
    def _(self, request: requests.Redraw) -> Drawn:
        check_group(self.run, request.group)
        temperatures, (drawn, row) = (
            self._temperatures(request.temperature),
            self._picture(request.of),
        )
        noise = [np.repeat(n[row], self.run.batch_size, axis=0) for n in drawn.noise]
        group, fresh = request.group, self._fresh(request.seed)
        noise[group][1:] = temperatures[group] * fresh[group][1:]
        return self._compose(drawn.run, PRIOR, np.ones(self.run.num_groups), noise)

    @_draw.register
    def _(self, request: requests.Keep) -> Drawn:
        if request.groups > self.run.num_groups:
            raise ValueError(
                f"groups must be from 0 to {self.run.num_groups}, not {request.groups}"
            )
        temperatures, (drawn, row) = (
            self._temperatures(request.temperature),
            self._picture(request.of),
        )
        kept = [np.repeat(z[row], self.run.batch_size, axis=0) for z in drawn.latents]
        fresh, sources = self._fresh(request.seed), np.full(self.run.num_groups, PRIOR)
        sources[: request.groups] = GIVEN
        latents = [*kept[: request.groups], *fresh[request.groups :]]
        return self._compose(drawn.run, sources, temperatures, latents)

    @_draw.register
    def _(self, request: requests.Interpolate) -> Drawn:
        (start, first), (end, last) = self._picture(request.start), self._picture(request.end)
        fractions = np.linspace(0.0, 1.0, self.run.batch_size)
        noise = [
            np.concatenate([slerp(a[first], b[last], fraction) for fraction in fractions])
            for a, b in zip(start.noise, end.noise, strict=True)
        ]
        run = start.run if start.run is end.run else self.run
        return self._compose(run, PRIOR, np.ones(self.run.num_groups), noise)

    def _compose(self, run, sources, temperatures, latents, images=None) -> Drawn:
        """Composes images, always with latents of all groups to use a single program."""
        sources = np.broadcast_to(sources, self.run.num_groups)
        return Drawn(run, *run.compose(sources, temperatures, latents=latents, images=images))

    def _fresh(self, seed):
        return self.run.draw_noise(self.run.batch_size, seed)

    def _temperatures(self, temperature):
        return group_temperatures(self.run.experiment.model.hierarchy, temperature)

    def _recalibrate(self, temperature) -> Run:
        what = f"recalibrating at temperature {describe_temperature(temperature)}"
        # Equal numbers become a single one, so that its statistics are found under the usual name.
        temperature = temperature if len(set(temperature)) > 1 else temperature[0]
        run = self.run.recalibrated(temperature, progress=lambda passes: self._watch(what, passes))
        _ = run.variables  # computed now, so that `watch` shows the progress
        return run

    def divergence(self, picture: requests.Picture) -> dict[str, Any]:
        """Returns the KL of each group in nats for an image, and the average over held-out images
        if they can be read, as JSON."""
        averages, note = self._held_out
        nats = self._divergence(self._prepare(picture))
        return {"nats": nats, "held_out": averages, "note": note}

    @functools.cached_property
    def _held_out(self):
        try:
            images = inputs.select(self.run.experiment, num=self.run.batch_size)
        except (ValueError, OSError) as error:
            return None, f"no held-out images: {error}"
        return self._divergence(self.run.prepare(images)), f"mean of {len(images)} held-out images"

    def _prepare(self, picture):
        """Converts a picture to the model's input; for an uploaded one, the uploaded image."""
        request = picture.request
        if isinstance(request, requests.Encode):
            return self.run.prepare(
                uploads.read(request.image, self.run.experiment.data), request.seed
            )
        drawn, row = self._picture(picture)
        return self.run.prepare(drawn.images[row])

    def _divergence(self, images):
        """The mean KL of each group over at most a batch of images."""
        missing = self.run.batch_size - len(images)
        padded = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.float32)])
        numbers = np.arange(self.run.batch_size)
        placed = map(sharding.shard_batch, (numbers, padded, numbers < len(images)))
        sums = jax.device_get(self._moments(self.run.variables, jax.random.key(0), *placed))
        return [float(kl.sum()) / len(images) for kl, *_ in sums]

    def file(self, picture: requests.Picture, ending: str) -> tuple[str, bytes]:
        """Makes a file of a picture: a PNG, or an .npz file of its latents for `decode`.

        Returns:
          (name, content) of the file, which contains the request as metadata.
        """
        drawn, row = self._picture(picture)
        metadata = drawn.run.metadata(**requests.describe(picture.request), index=picture.index)
        name = f"{self.run.workdir.resolve().name}_{metadata['kind']}_{picture.index}.{ending}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            if ending == "png":
                image = pictures.to_range(drawn.images[row], self.run.num_bits)[0]
                pictures.save_png(path, image, metadata)
            else:
                latents = {f"sample_{g:02d}": z[row] for g, z in enumerate(drawn.latents)}
                texts = {key: str(value) for key, value in metadata.items()}
                pictures.save_arrays(path, images=drawn.images[row], **latents, **texts)
            return name, path.read_bytes()


def explore_run(port: int, **run: Any) -> None:
    """Serves the page of a run on 127.0.0.1 until a signal stops it.

    Args:
      port: port to listen on; 0 chooses a free one.
      **run: arguments of `api.load`; `batch_size` is the number of images per panel.

    Raises:
      ValueError: if the port is not available, there is no such run, or the extra `explore` is not
        installed.
    """
    server = extras.load("nvae_jax.explore.server", "explore", "nvae-jax explore")
    with server.listen(port) as listening:  # checked before loading, which takes long
        server.serve(Explorer(api.load(**run)), listening)
