"""Batch-norm statistics for sampling: pooled over passes of prior samples (paper, section 4)."""

from functools import partial

import jax
import jax.numpy as jnp


def recalibrate(model, variables, key, *, temperature=1.0, passes=500, batch_size=16):
    """Replaces running statistics, which follow training batches, by those of the model's samples.

    Each pass samples from the prior with batch statistics. Means are averaged; variances are
    averaged and the variance of the means between passes is added. Only the top-down network and
    the postprocessing take part: the rest keeps its statistics.

    Args:
      model: an `NVAE`.
      variables: its variables.
      key: a PRNG key.
      temperature: of the prior; the one to sample at afterwards.
      passes: how many batches.
      batch_size: images of each.

    Returns:
      new `batch_stats`, float32.

    Raises:
      ValueError: fewer than one pass, or fewer than two images a pass.
    """
    if passes < 1 or batch_size < 2:
        raise ValueError(
            f"recalibration wants at least 1 pass of 2 images, not {passes} of {batch_size}"
        )
    # With this momentum the running statistics become those of the batch.
    one_pass = jax.jit(partial(_batch_statistics, model.clone(bn_momentum=1.0), batch_size))
    pooled, squares = variables["batch_stats"], None
    for i in range(passes):
        batch = one_pass(variables, jax.random.fold_in(key, i), temperature)
        pooled, squares = (batch, None) if i == 0 else _pool(pooled, squares, batch, i + 1)
    return pooled if squares is None else _add_spread(pooled, squares, passes)


def _batch_statistics(model, batch_size, variables, key, temperature):
    _, updated = model.apply(
        variables,
        batch_size,
        temperature=temperature,
        train=True,
        method="sample_logits",
        mutable=["batch_stats"],
        rngs={"latent": key},
    )
    return updated["batch_stats"]


@jax.jit
def _pool(mean, squares, batch, count):
    """Welford's update: running means, and sums of squared deviations from them."""
    squares = jax.tree.map(jnp.zeros_like, mean) if squares is None else squares
    deviation = jax.tree.map(jnp.subtract, batch, mean)
    mean = jax.tree.map(lambda m, d: m + d / count, mean, deviation)
    squares = jax.tree.map(lambda s, d, b, m: s + d * (b - m), squares, deviation, batch, mean)
    return mean, squares


@jax.jit
def _add_spread(mean, squares, count):
    """Adds the variance of the batch means to the mean of the batch variances."""

    def pooled(path, value):
        if path[-1].key != "var":
            return value
        spread = squares
        for key in path[:-1]:
            spread = spread[key.key]
        return value + spread["mean"] / count

    return jax.tree_util.tree_map_with_path(pooled, mean)
