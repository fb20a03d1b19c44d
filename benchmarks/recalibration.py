"""Measures the effect of batch-norm recalibration on the samples of a trained model.

python benchmarks/recalibration.py --workdir=DIR [--num=5000] [--temperature=0.7]

The measure is the Fréchet distance between Gaussians fitted to samples and to test images, in the
space of the first principal components of the training images: lower is better. It also prints the
mean and the standard deviation of the samples' pixels. `nvae-jax fid --features=pca` computes the
same distance for one set of samples.
"""

import json

import numpy as np
from absl import flags

from nvae_jax import api, cli
from nvae_jax.data import pipeline
from nvae_jax.metrics import moments
from nvae_jax.metrics.features import PrincipalComponents
from nvae_jax.recalibrate import METHODS

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
NUM = flags.DEFINE_integer("num", 5000, "number of samples", 2)
COMPONENTS = flags.DEFINE_integer("components", 64, "principal components", 1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "of the prior")
SEEDS = flags.DEFINE_integer("seeds", 3, "repetitions with different samples", 1)


def images_of(spec, split):
    """All images of a split, (N, H, W, C) in [0, 1]."""
    batches = pipeline.eval_batches(spec.unbinarized(), split=split, batch_size=5000, seed=0)
    return np.concatenate([b["image"][b["mask"]] for b in batches])


def main(_):
    run = api.load(WORKDIR.value)
    train, test = (images_of(run.experiment.data, split) for split in ("train", "test"))
    features = PrincipalComponents([train], COMPONENTS.value)
    reference = moments.pool([features(test)])

    def measure(images):
        flat, found = images.reshape(len(images), -1), moments.pool([features(images)])
        gaussians = [(m.mean, m.covariance) for m in (found, reference)]
        distance = moments.frechet_distance(*gaussians[0], *gaussians[1])
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
