"""Measures how many samples of a model of `digits` a classifier recognises as digits.

python benchmarks/digit_samples.py --workdir=DIR [--num=1000] [--temperature=0.45]

The classifier is a small network, trained on the 1,500 training digits at 8x8. The main number is
the percentage of samples with a class probability above 0.9, compared with that of test digits. To
detect a lack of variety, it also prints the fractions of the rarest and the most common class, and
the mean distance between two images of a class.
"""

import json

import numpy as np
from absl import flags
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from nvae_jax import api, cli
from nvae_jax.data import digits

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
NUM = flags.DEFINE_integer("num", 1000, "number of samples", 2)
TEMPERATURE = flags.DEFINE_float("temperature", 0.45, "of the prior")
SEEDS = flags.DEFINE_integer("seeds", 5, "number of classifiers, whose results are averaged", 1)
SURE = 0.9  # minimum probability of a class


def features(images):
    """Reduces images (N, 16, 16, 1) to (N, 64) in [0, 1]: means over blocks of 2x2 pixels."""
    return np.asarray(images).reshape(-1, 8, 2, 8, 2).mean((2, 4)).reshape(-1, 64)


def measure(classifiers, images):
    """The numbers that the module's docstring describes, for images (N, 16, 16, 1) in [0, 1]."""
    found = features(images)
    sure = [(c.predict_proba(found).max(1) > SURE).mean() for c in classifiers]
    classes = classifiers[0].predict(found)
    shares = np.bincount(classes, minlength=10) / len(found)
    distances = [spread(found[classes == c][:100]) for c in range(10) if (classes == c).sum() > 1]
    row = {
        "sure": 100 * np.mean(sure),
        "rarest class": 100 * shares.min(),
        "commonest class": 100 * shares.max(),
        "distance": np.mean(distances),
    }
    return {name: round(float(value), 2) for name, value in row.items()}


def spread(vectors):
    """The mean distance between two of the vectors (N, F)."""
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    return distances.sum() / (len(vectors) * (len(vectors) - 1))


def main(_):
    run = api.load(WORKDIR.value).recalibrated(TEMPERATURE.value)
    train, test = (digits.read_images(split) / 255 for split in ("train", "test"))
    labels = digits.chosen(load_digits().target, "train")
    classifiers = [
        MLPClassifier((64, 64), random_state=seed, max_iter=400).fit(features(train), labels)
        for seed in range(SEEDS.value)
    ]
    samples = run.sample(NUM.value, temperature=TEMPERATURE.value)
    for name, images in (("test digits", test), ("samples", samples)):
        print(json.dumps({name: measure(classifiers, images)}))


if __name__ == "__main__":
    cli.run(main)
