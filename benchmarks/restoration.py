"""PSNR of restored photographs and of plain restorations: the tables in docs/restoration.md.

pip install scikit-image
python benchmarks/restoration.py --workdir=DIR [--config.data.dir=DATA] [--out=TABLE.json]

DIR is a run of configs/photographs.py. Its test images are degraded in six ways and restored by
both methods, with their default settings. The plain restorations are, for masks, the mean of the
known pixels, the smooth fill (Laplace's equation) and the biharmonic fill; for low resolution,
bicubic interpolation, with and without corrected means over blocks; for noise, a Gaussian filter,
total variation and non-local means, each with the width, weight or strength that is best for these
very images. The filters and the biharmonic fill are from scikit-image.

Each row is written to TABLE.json when it is computed; existing rows are not computed again.
"""

import functools
import json
import time
from pathlib import Path

import numpy as np
import skimage.restoration
from absl import flags

from nvae_jax import api, cli, files, inputs, options
from nvae_jax.restoration import baselines, masks
from nvae_jax.restoration.degradation import degrade, observe
from nvae_jax.restoration.restore import METHODS

RUN = options.define_run()
NUM = flags.DEFINE_integer("num", 48, "number of patches", 1)
SAMPLES = flags.DEFINE_integer("samples", 8, "samples per patch", 1)
ONLY = flags.DEFINE_list("only", None, "rows to compute; default: all")
OUT = flags.DEFINE_string("out", None, "JSON file for the table")
DEGRADATIONS = {
    "noise of 0.1": {"noise": 0.1},
    "noise of 0.2": {"noise": 0.2},
    "2 times smaller": {"scale": 2},
    "middle square unknown": {"mask": "center"},
    "half of the pixels unknown": {"mask": "random"},
    "4 times smaller": {"scale": 4},
}


def plain(observed, noise):
    """{name: [images, ...]} of plain restorations; only the best of each list is used."""
    y, scale = observed.values, observed.scale
    if noise:
        denoise = functools.partial(_each, y)
        variation = functools.partial(skimage.restoration.denoise_tv_chambolle, channel_axis=-1)
        nonlocal_means = functools.partial(
            skimage.restoration.denoise_nl_means,
            channel_axis=-1,
            patch_size=3,
            patch_distance=6,
            sigma=noise,
        )
        return {
            "none": [np.clip(y, 0, 1)],
            "Gaussian filter": [baselines.blur(y, s) for s in np.linspace(0.3, 2, 18)],
            "total variation": [denoise(variation, weight=w) for w in np.geomspace(0.01, 1, 21)],
            "non-local means": [denoise(nonlocal_means, h=h * noise) for h in (0.4, 0.6, 0.8, 1)],
        }
    if scale > 1:
        right = baselines.first_guess(observed)
        return {"bicubic": [baselines.bicubic(y, scale)], "bicubic, corrected means": [right]}
    known = observed.known > 0
    return {
        "mean fill": [baselines.fill_mean(y, known)],
        "smooth fill": [baselines.fill_smooth(y, known)],
        "biharmonic fill": [_biharmonic(y, known)],
    }


def _biharmonic(images, known):
    fill = functools.partial(skimage.restoration.inpaint_biharmonic, channel_axis=-1)
    filled = [fill(image, ~where[..., 0]) for image, where in zip(images, known, strict=True)]
    return np.clip(np.stack(filled), 0, 1)


def _each(images, function, **settings):
    return np.clip(np.stack([function(image, **settings) for image in images]), 0, 1)


def measure(run, originals, degradation):
    """{name: mean PSNR in dB} of plain restorations and of each method's best image, of the mean of
    its samples and of one sample."""
    degradation = dict(degradation)
    if "mask" in degradation:
        shape = originals.shape[1], len(originals)
        degradation["mask"] = masks.load(degradation["mask"], *shape)
    seen = degrade(originals, **degradation)
    observed = observe(seen, run.experiment.data, **degradation)

    def mean_psnr(images):
        return float(baselines.psnr(images, originals).mean())

    found = plain(observed, degradation.get("noise"))
    row = {name: max(map(mean_psnr, images)) for name, images in found.items()}
    for method in METHODS:
        started = time.monotonic()
        best, draws = run.restore(seen, method=method, num_samples=SAMPLES.value, **degradation)
        ours = {"": best, ", mean of draws": draws.mean(1), ", one draw": draws[:, 0]}
        row |= {f"{method}{name}": mean_psnr(images) for name, images in ours.items()}
        row[f"{method}, seconds"] = time.monotonic() - started
    return {name: round(value, 2) for name, value in row.items()}


def start_table(settings):
    """The rows in OUT, if they have the same settings."""
    path = Path(OUT.value or "")
    table = json.loads(path.read_text()) if path.is_file() else settings
    if settings.items() - table.items():
        raise ValueError(f"{path} has rows with other settings: give another --out")
    return table


def main(_):
    run = api.load(**RUN(), batch_size=24)
    originals = inputs.select(run.experiment, num=NUM.value)
    settings = {"step": run.state.step, "images": len(originals), "samples": SAMPLES.value}
    table = start_table(settings)
    for name, degradation in DEGRADATIONS.items():
        if name in (ONLY.value or DEGRADATIONS) and name not in table:
            table[name] = measure(run, originals, degradation)
            print(name, json.dumps(table[name]), flush=True)
            if OUT.value:
                files.write_json(OUT.value, table)


if __name__ == "__main__":
    cli.run(main)
