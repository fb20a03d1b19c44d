"""Rematerialization and unrolling change the memory, but not the gradient."""

import jax
import numpy as np
import pytest
from jax.extend.core import subjaxprs

from nvae_jax import build
from nvae_jax.models.remat import POLICIES
from nvae_jax.ops.portable.normalization import STATISTICS
from tests.conftest import tiny_config


def pass_of(policy, unroll):
    """The model's variables, and a function of its parameters that uses every output."""
    small = {"num_scales": 1, "num_groups": 3, "process_blocks": 1}
    config = tiny_config(model={"remat": policy, "unroll": unroll, **small})
    experiment = build.build(config)
    images = (np.random.default_rng(0).random((4, *experiment.image_shape)) > 0.5) * 1.0
    images = images.astype(np.float32)
    state = experiment.create_state(images)

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        out, mutated = experiment.model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"latent": jax.random.key(1)},
        )
        return (out.logits**2).mean() + out.kl.mean(), mutated["batch_stats"]

    return state.params, loss


def kept_bytes(policy, unroll):
    """The bytes that the forward pass stores for the backward pass."""
    params, loss = pass_of(policy, unroll)
    residuals = jax.eval_shape(lambda p: jax.vjp(loss, p, has_aux=True)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


@pytest.fixture(scope="module")
def without():
    params, loss = pass_of("none", 1)
    return jax.jit(jax.grad(loss, has_aux=True))(params)


UNROLLED = [(policy, 10**6) for policy in ("none", "norm_act", "group")]


@pytest.mark.parametrize(("policy", "unroll"), [(policy, 1) for policy in POLICIES[1:]] + UNROLLED)
def test_rematerialization_changes_no_gradient_and_no_statistic(without, policy, unroll):
    params, loss = pass_of(policy, unroll)
    found = jax.jit(jax.grad(loss, has_aux=True))(params)
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unroll", [1, 10**6])
def test_each_policy_stores_less_than_the_one_before(unroll):
    kept = [kept_bytes(policy, unroll) for policy in POLICIES]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    assert kept[1] < 0.82 * kept[0]  # the paper saves 18%


def count_statistics(jaxpr):
    """How often a program computes the mean or the variance of a batch, loops counted once."""
    named = sum(e.primitive.name == "name" and e.params["name"] == STATISTICS for e in jaxpr.eqns)
    return named + sum(count_statistics(inner) for inner in subjaxprs(jaxpr))


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_statistics_are_not_computed_again(policy):
    found = []
    for one in ("none", policy):
        params, loss = pass_of(one, 10**6)
        found.append(count_statistics(jax.make_jaxpr(jax.grad(loss, has_aux=True))(params).jaxpr))
    assert found[0] == found[1] > 0


def test_an_unknown_policy_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="model.remat is 'all'; it must be one of: none, norm_act"):
        build.build(tiny_config(model={"remat": "all"}))
