import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax.models import flows


@pytest.mark.parametrize("latents", [1, 2, 3])
@pytest.mark.parametrize("flipped", [False, True])
def test_each_half_is_autoregressive(flipped, latents):
    """dz'[i] / dz[j] is the identity at i = j and 0 for every j after i in the order."""
    half = flows.FlowHalf(flipped)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4, latents)), jnp.float32)
    variables = jax.jit(half.init)(jax.random.key(0), z)
    jacobian = jax.jit(jax.jacobian(lambda v: half.apply(variables, v)[0]))(z)[:, :, :, 0]
    positions = 12
    jacobian = np.asarray(jacobian).reshape(positions, latents, positions, latents)
    if flipped:
        jacobian = jacobian[::-1, :, ::-1]  # pixels in reverse order, channels not
    jacobian = jacobian.reshape(positions * latents, positions * latents)
    np.testing.assert_allclose(np.diag(jacobian), 1.0)
    assert not np.triu(jacobian, 1).any()
    assert np.tril(jacobian, -1).any()


def test_the_first_output_depends_on_no_input_and_the_last_on_all_before_it():
    half = flows.FlowHalf(False)
    z = jnp.ones((1, 5, 5, 2))
    variables = jax.jit(half.init)(jax.random.key(0), z)

    def seen(row, column, channel):
        gradient = jax.grad(lambda v: half.apply(variables, v)[0, row, column, channel])(z)
        return int((np.asarray(gradient) != 0).sum())

    assert seen(0, 0, 0) == 1
    assert seen(4, 4, 1) > 20


def test_a_new_flow_is_close_to_the_identity():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 4)), jnp.float32)
    half = flows.FlowHalf(False)
    params = jax.jit(half.init)(jax.random.key(0), z)["params"]
    kernel = params["conv_out"]["kernel"] * flows.causal_mask(
        (1, 1, 24, 4), strict=False, flipped=False, latent_channels=4
    )
    norm = np.sqrt((np.asarray(kernel) ** 2).sum((0, 1, 2)))
    np.testing.assert_allclose(np.exp(params["conv_out"]["log_scale"]), (norm + 0.01) / 10, 1e-5)
