"""Kernels that are computed before the pass equal those that the convolutions compute in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from nvae_jax import build
from nvae_jax.models.kernels import effective_kernels, with_kernels
from tests.conftest import tiny_config


@pytest.fixture(scope="module")
def experiment():
    return build.build(
        tiny_config(model={"num_flows": 1, "num_scales": 1, "num_groups": 3, "unroll": 1})
    )


@pytest.fixture(scope="module")
def variables(experiment):
    images = jnp.zeros((1, *experiment.image_shape))
    variables = experiment.create_state(images).variables
    rng = np.random.default_rng(7)

    def moved(parameter):
        return (parameter + 0.3 * rng.normal(size=parameter.shape)).astype(np.float32)

    params = jax.tree.map(moved, jax.device_get(variables["params"]))
    return {**variables, "params": params}


def test_the_model_with_precomputed_kernels_gives_the_same_values_and_gradients(
    experiment, variables
):
    """This includes masks, norms and log-scales of all convolutions, stacked or not."""
    images = jax.random.uniform(jax.random.key(0), (2, *experiment.image_shape))

    def apply(model, params):
        rngs = {"latent": jax.random.key(1)}
        out = model.apply({**variables, "params": params}, images, rngs=rngs)
        return out.kl.mean() + jnp.square(out.logits).mean()

    def given(params):
        return apply(
            *with_kernels(experiment.model, params, effective_kernels(experiment.model, params))
        )

    own = jax.jit(jax.value_and_grad(lambda params: apply(experiment.model, params)))
    ours, theirs = jax.jit(jax.value_and_grad(given))(variables["params"]), own(variables["params"])
    ours, theirs = jax.device_get((ours, theirs))
    largest = max(np.abs(g).max() for g in jax.tree.leaves(theirs[1]))
    for mine, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-3, atol=1e-5 * largest)


def test_a_kernel_is_precomputed_for_every_convolution_and_nothing_else(experiment, variables):
    params = traverse_util.flatten_dict(variables["params"])
    kernels = traverse_util.flatten_dict(effective_kernels(experiment.model, variables["params"]))
    dense = {path for path in params if path[-2] in ("reduce", "expand")}
    assert set(kernels) == {path for path in params if path[-1] == "kernel"} - dense
    strict = [k for path, k in kernels.items() if path[-3:-1] == ("forward", "conv_in")]
    assert strict and not any(k[..., 2, :, :, :].any() for k in map(np.asarray, strict))
