"""Classifies digits by the latents of a trained model. Requires: pip install scikit-learn

python examples/latents_to_scikit_learn.py runs/digits
"""

import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import nvae_jax


def features(run, images):
    """Returns the posterior means of all groups, coarsest first, as (N, D)."""
    # Temperature 0 draws no noise: an image always has the same features.
    latents = run.encode(images, temperature=0.0)
    return np.concatenate([z.reshape(len(z), -1) for z in latents], axis=1)


def digits():
    """scikit-learn's digits as (N, 16, 16, 1) in [0, 1], and their labels (N,)."""
    data = load_digits()
    images = data.images.repeat(2, axis=1).repeat(2, axis=2)[..., None] / 16
    return images.astype(np.float32), data.target


def accuracy(run, images, labels):
    """The fraction of held-out images that the classifier labels correctly."""
    inputs = train_test_split(features(run, images), labels, test_size=0.25, random_state=0)
    train_inputs, test_inputs, train_labels, test_labels = inputs
    # Latents differ in scale from group to group.
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return classifier.fit(train_inputs, train_labels).score(test_inputs, test_labels)


if __name__ == "__main__":
    print(f"accuracy {accuracy(nvae_jax.load(sys.argv[1]), *digits()):.3f}")
