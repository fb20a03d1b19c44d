"""What recalibrating batch norm does to the samples of a trained model.

python benchmarks/recalibration.py --workdir=DIR [--num=5000] [--temperature=0.7]

The measure is the Fréchet distance between Gaussians fitted to samples and to test images, in the
space of the first principal components of the training images: lower is better. Beside it stand the
mean and the standard deviation of the samples' pixels.
"""

import json

import numpy as np
from absl import flags

from nvae_jax import api, cli, nearest
from nvae_jax.data import pipeline
from nvae_jax.recalibrate import METHODS

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
NUM = flags.DEFINE_integer("num", 5000, "how many samples", 2)
COMPONENTS = flags.DEFINE_integer("components", 64, "principal components", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "of the prior")
SEEDS = flags.DEFINE_integer("seeds", 3, "repetitions, with other samples", 1)


def frechet_distance(one, other):
    """|difference of means|² + trace(A + B - 2 (AB)^½) of features (N, F) and (M, F)."""
    shift = one.mean(0) - other.mean(0)
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # The trace of the root of AB is the sum of its eigenvalues' roots.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0)).sum()
    return float(shift @ shift + np.trace(a) + np.trace(b) - 2 * roots)


def images_of(spec, split):
    """All images of a split as (N, H·W·C) in [0, 1]."""
    batches = pipeline.eval_batches(
        nearest.unbinarized_spec(spec), split=split, batch_size=5000, seed=0
    )
    return np.concatenate([b["image"][b["mask"]].reshape(b["mask"].sum(), -1) for b in batches])


def main(_):
    run = api.load(WORKDIR.value)
    train, test = (images_of(run.experiment.data, split) for split in ("train", "test"))
    centre = train.mean(0)
    _, _, axes = np.linalg.svd((train - centre)[:20000], full_matrices=False)
    axes = axes[: COMPONENTS.value].T

    def measure(images):
        flat = images.reshape(len(images), -1)
        distance = frechet_distance((flat - centre) @ axes, (test - centre) @ axes)
        return [distance, float(flat.mean()), float(flat.std(0).mean())]

    print(json.dumps({"training images": measure(train[: NUM.value])}))
    runs = {"none": run}
    for method in METHODS:
        runs[method] = run.recalibrated(TEMPERATURE.value, method=method)
    for name, variant in runs.items():
        found = [
            measure(variant.sample(NUM.value, temperature=TEMPERATURE.value, seed=seed))
            for seed in range(SEEDS.value)
        ]
        mean, spread = np.mean(found, 0), np.std(found, 0)
        row = {"frechet": mean[0], "spread": spread[0], "mean": mean[1], "deviation": mean[2]}
        print(json.dumps({name: {key: round(value, 4) for key, value in row.items()}}))


if __name__ == "__main__":
    cli.run(main)
