"""Folded models give the same numbers with plain convolutions."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from nvae_jax.build import build_model
from nvae_jax.folding import fold
from nvae_jax.noise import image_keys, latent_noise

CELLS = [("residual", "inverted_residual", 1), ("residual_bn_elu", "residual_elu", 0)]


@pytest.mark.parametrize("encoder_cell, decoder_cell, num_flows", CELLS)
def test_folded_numbers(
    tiny_run_config, random_variables, images, encoder_cell, decoder_cell, num_flows
):
    config = tiny_run_config.copy_and_resolve_references()
    config.model.update(encoder_cell=encoder_cell, decoder_cell=decoder_cell, num_flows=num_flows)
    model, variables = build_model(config), random_variables(config)
    folded, plain = fold(model, variables)
    noise = latent_noise(model, image_keys(jax.random.key(0), np.arange(5)))

    def run(model):
        @jax.jit
        def both(variables):
            latents = model.apply(variables, images, noise=noise).latents
            logits = model.apply(variables, noise=noise, temperature=0.7, method="sample_logits")
            return *latents, logits

        return both

    expected, found = run(model)(variables), run(folded)(plain)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-4 * max(np.abs(theirs).max(), 1.0)
    names = set(flatten_dict(plain["params"]))
    assert not any("log_scale" in name for name in names)
    left = {name[-2] for name in names if name[-1] == "scale"}
    assert left <= {"norm_0"}  # all other layers are folded into convolutions
