"""Exports a trained model as two files that run without this package: a sampler and an encoder.

Each is a program serialised by `jax.export` (StableHLO) that contains the weights; normalisation is
folded into plain convolutions.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import VariableDict

from nvae_jax import (
    capacity,
    extras,
    files,
    outputs,
    paths,
    processes,
    progress,
    run_directory,
    steps,
)
from nvae_jax.api import Run
from nvae_jax.folding import fold
from nvae_jax.likelihoods import Likelihood, crop
from nvae_jax.models.latents import POSTERIOR
from nvae_jax.models.nvae import NVAE
from nvae_jax.noise import group_temperatures, image_keys, latent_noise

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
USAGE = """Two programs exported by nvae_jax. They need only jax and flatbuffers:

    import jax, jax.export, numpy as np

    def load(name):
        return jax.export.deserialize(bytearray(open(name, "rb").read())).call

    sample, encode = load("sampler.jax"), load("encoder.jax")
    images = sample(np.uint32(0), np.int32(0), np.float32({temperature}))
    latents = encode(images, np.uint32(0), np.float32(1))

sample(seed, first, temperature) draws images number first to first + {batch} - 1: {images} float32
in [0, 1]. encode(images, seed, temperature) draws the latents of as many images: {groups} arrays,
coarsest first; at temperature 0 it returns means. It expects images like those that the model was
trained on: {expects}.
"""


def make_sampler(
    model: NVAE, likelihood: Likelihood, variables: VariableDict, *, batch_size: int, padding: int
) -> Callable[..., jax.Array]:
    """Makes the sampler (seed () uint32, first () int32, temperature ()) -> images (batch, h, w, C)
    in [0, 1], the decoder's means of the images numbered from `first` on."""
    sample_step = steps.make_sample_step(model, likelihood)

    def sampler(seed, first, temperature):
        indices = first + jnp.arange(batch_size, dtype=jnp.int32)
        return crop(sample_step(variables, jax.random.key(seed), indices, temperature), padding)

    return sampler


def make_encoder(
    model: NVAE, variables: VariableDict, *, padding: int
) -> Callable[..., tuple[jax.Array, ...]]:
    """Makes the encoder (images (batch, h, w, C) in [0, 1], seed () uint32, temperature ()) ->
    latents of each group, drawn from the posterior."""
    groups = len(model.latent_shapes())

    def encoder(images, seed, temperature):
        keys = image_keys(jax.random.key(seed), jnp.arange(len(images)))
        border = (padding, padding)
        images = jnp.pad(images, ((0, 0), border, border, (0, 0)))
        features = model.apply(variables, images, method="encode")
        temperatures = jnp.broadcast_to(temperature, groups)
        sources = np.full(groups, POSTERIOR)
        noise = latent_noise(model, keys)
        draw: Any = model.apply(variables, noise, sources, temperatures, features, method="compose")
        return draw.latents

    return encoder


def export_run(
    run: Run,
    out: str | Path,
    *,
    batch_size: int = 16,
    temperature: float = 1.0,
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> None:
    """Writes `sampler.jax`, `encoder.jax`, `export.json` and `README.txt` to the folder `out`.

    Args:
      run: an `api.Run`; recalibrated statistics are used by the sampler only.
      out: output folder.
      batch_size: number of images per call of the programs.
      temperature: the number that the run was recalibrated at, used in the example of README.txt.
      platforms: platforms on which the programs can run.
      overwrite: whether to replace files made with other settings.

    Raises:
      ValueError: if a platform is unknown, the batch size is out of range, `flatbuffers` is not
        installed, or the files must not be written (see `outputs.check`).
    """
    _check(batch_size, platforms)
    experiment, padding = run.experiment, run.experiment.data.padding
    group_temperatures(experiment.model.hierarchy, temperature)
    capacity.check_memory(experiment, batch_size=batch_size)
    metadata = run.metadata(
        batch_size=batch_size, temperature=temperature, platforms=list(platforms)
    )
    out = paths.parse(out)
    names = ("export.json", "sampler.jax", "encoder.jax", "README.txt")
    outputs.check([out / name for name in names], metadata, overwrite=overwrite)
    original = experiment.model_for_any_platform
    model, variables = fold(original, jax.device_get(run.variables))
    sampler = make_sampler(
        model, experiment.likelihood, variables, batch_size=batch_size, padding=padding
    )
    _, variables = fold(original, jax.device_get(run.state.variables))
    encoder = make_encoder(model, variables, padding=padding)
    shape = (batch_size, *experiment.data.unpadded_shape)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    seed, first = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((), jnp.int32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    programs = {
        "sampler.jax": (sampler, (seed, first, number)),
        "encoder.jax": (encoder, (images, seed, number)),
    }

    def write():
        sizes = {}
        for name in progress.bar("exporting", programs, unit="program"):
            program, arguments = programs[name]
            sizes[name] = _write(out / name, program, arguments, platforms)
        files.write_json(out / "export.json", {**metadata, "bytes": sizes})
        run_directory.write_text(out / "README.txt", _usage(run, shape, temperature))
        named = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for name, size in sizes.items())
        print(f"written to {out}: {named}")

    processes.on_primary(write)


def _check(batch_size, platforms):
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    unknown = set(platforms) - set(PLATFORMS)
    if unknown or not platforms:
        known = ", ".join(PLATFORMS)
        raise ValueError(
            f"unknown platform {', '.join(sorted(unknown)) or '(none)'}; known: {known}"
        )
    extras.load("flatbuffers", "export", "exporting")  # jax.export writes with it


def _write(path, function, shapes, platforms):
    """Writes one program and returns its size in bytes."""
    program = jax.export.export(jax.jit(function), platforms=platforms)(*shapes)
    content = program.serialize(vjp_order=0)
    with files.atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return len(content)


def _usage(run, shape, temperature):
    spec = run.experiment.data
    kind = "zeros and ones" if spec.binarize else f"{spec.num_bits}-bit values divided by "
    kind += "" if spec.binarize else str(2**spec.num_bits - 1)
    return USAGE.format(
        temperature=temperature,
        batch=shape[0],
        images=shape,
        groups=run.num_groups,
        expects=f"{shape[1]}x{shape[2]}x{shape[3]}, {kind}",
    )
