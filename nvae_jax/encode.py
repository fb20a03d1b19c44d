"""Images to latents on disk, and back."""

import re
from pathlib import Path

import numpy as np

from nvae_jax import inputs, pictures

KINDS = ("sample", "mean")


def encode_run(run, images, out, *, seed=0):
    """Writes the posterior's means and a draw from it, for every group.

    Args:
      run: an `api.Run`.
      images: (N, H, W, C) in [0, 1].
      out: an `.npz` file: `images`, and for group NN, coarsest first, `mean_NN` and `sample_NN`
        (N, h, w, z). Means are those given the means of the groups above.
      seed: of the draw.
    """
    arrays = {"images": images}
    for kind, temperature in (("mean", 0.0), ("sample", 1.0)):
        latents = run.encode(images, temperature=temperature, seed=seed)
        arrays.update({f"{kind}_{group:02d}": z for group, z in enumerate(latents)})
    pictures.save_arrays(out, **arrays, **run.metadata(seed=seed))
    print(f"{len(images)} image(s) encoded to {out}: {run.num_groups} groups")


def load_latents(path, kind="sample", groups=None):
    """The latents that `encode_run` wrote: a list of (N, h, w, z), coarsest first.

    Args:
      path: of the file.
      kind: one of `KINDS`.
      groups: only so many of the coarsest; None takes all.

    Raises:
      ValueError: no such file, or it has not so many latents of that kind.
    """
    arrays = inputs.load_arrays(path)
    names = sorted(name for name in arrays if re.fullmatch(rf"{kind}_\d+", name))
    if not names:
        raise ValueError(f"{path} has no latents {kind}_00, {kind}_01 ...")
    if groups is not None and groups > len(names):
        raise ValueError(f"{path} has latents of {len(names)} groups, not of {groups}")
    return [arrays[name] for name in names[:groups]]


def decode_run(run, latents, out, *, temperature=1.0, seed=0):
    """Writes images of latents: `decoded.npz` (key `images`, uint8) and `decoded.png`.

    Args:
      run: an `api.Run`.
      latents: a list of (N, h, w, z), of all groups or of the coarsest; the others are drawn from
        the prior.
      out: a folder.
      temperature: of the prior.
      seed: of those draws.
    """
    images = pictures.to_uint8(run.decode(latents, temperature=temperature, seed=seed))
    temperature = np.atleast_1d(temperature).tolist()
    metadata = run.metadata(groups=len(latents), temperature=temperature, seed=seed)
    pictures.save_arrays(Path(out) / "decoded.npz", images=images, **metadata)
    pictures.save_grid(Path(out) / "decoded.png", images[:100], metadata)
    print(f"{len(images)} image(s) written to {Path(out) / 'decoded.npz'}")
