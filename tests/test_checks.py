"""Users' arrays of a wrong shape or type are one-line errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax import checks, likelihoods


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 3)), "it must be of shape .N, 3, 4., not .2, 3."),
        (np.zeros((2, 4, 3)), "it must be of shape .N, 3, 4., not .2, 4, 3."),
        (np.zeros((2, 3, 4), int), "it must be of type float, not int64"),
    ],
)
def test_a_wrong_array_is_a_one_line_error(value, message):
    with pytest.raises(ValueError, match=message) as error:
        checks.array("it", value, ("N", 3, 4), float)
    assert "\n" not in str(error.value)


def test_right_arrays_are_accepted_with_or_without_a_given_type():
    checks.array("it", np.zeros((0, 3), np.float32), ("N", 3), float)
    checks.array("it", np.zeros((5, 3), bool), ("N", 3))
    jax.eval_shape(
        lambda x: checks.array("it", x, ("N", 3), jnp.bfloat16), jnp.ones((2, 3), "bfloat16")
    )


def test_the_model_refuses_images_and_noise_of_wrong_shape_or_type(tiny):
    experiment, state, images = tiny
    model, variables = experiment.model, state.variables
    noise = [np.zeros((4, *shape), np.float32) for shape in model.latent_shapes()]
    for wrong, message in (
        (images.astype(np.uint8), "images must be of type float, not uint8"),
        (images[:, :8], "images must be of shape .B, 16, 16, C., not .4, 8, 16, 1."),
        (images[0], "images must be of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            model.apply(variables, wrong, noise=noise)
    with pytest.raises(ValueError, match="noise of group 1 must be of shape .4, 4, 4, 4., not .3,"):
        wrong = [noise[0], noise[1][:3], *noise[2:]]
        model.apply(variables, noise=wrong, method="sample_logits")


def test_likelihoods_refuse_logits_and_images_of_wrong_shape():
    with pytest.raises(
        ValueError, match="logits must be of shape .B, H, W, params., not .4, 4, 1."
    ):
        likelihoods.make("bernoulli", jnp.zeros((4, 4, 1)))
    found = likelihoods.make("bernoulli", jnp.zeros((2, 4, 4, 1)))
    with pytest.raises(ValueError, match="images must be of shape .B, 4, 4, 1., not .2, 16."):
        found.log_prob(jnp.zeros((2, 16)))
