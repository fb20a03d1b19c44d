"""The one join: turns a ConfigDict into the model, its likelihood, its data and its optimiser.

Nobody else reads a ConfigDict. Every function raises ValueError with one line that names the key.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nvae_jax import likelihoods
from nvae_jax.models import cells
from nvae_jax.models.hierarchy import Hierarchy
from nvae_jax.models.nvae import NVAE

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PRECISIONS = {
    "default": jax.lax.Precision.DEFAULT,
    "high": jax.lax.Precision.HIGH,
    "highest": jax.lax.Precision.HIGHEST,
}
UNROLL_ALL = 10**6


def build_model(config):
    """The `NVAE` module that a config describes."""
    model = config.model
    _check_positive(
        model,
        "encoder_width decoder_width preprocess_cells postprocess_cells encoder_cells_per_group "
        "decoder_cells_per_group num_mixtures",
    )
    for key in ("num_flows", "unroll", "process_blocks"):
        if model[key] < 0:
            raise ValueError(f"model.{key} must not be negative, not {model[key]}")
    for key in ("encoder_cell", "decoder_cell"):
        cells.body(model[key])
    same = (
        "encoder_width decoder_width preprocess_cells postprocess_cells encoder_cells_per_group "
        "decoder_cells_per_group encoder_cell decoder_cell squeeze_excitation residual_posterior "
        "num_flows"
    )
    return NVAE(
        hierarchy=build_hierarchy(config),
        output_channels=likelihoods.num_params(
            model.likelihood, config.data.channels, model.num_mixtures
        ),
        unroll=model.unroll or (UNROLL_ALL if jax.default_backend() == "cpu" else 1),
        dtype=_choose(DTYPES, "model.dtype", model.dtype),
        precision=_choose(PRECISIONS, "model.precision", model.precision),
        **{key: model[key] for key in same.split()},
    )


def build_hierarchy(config):
    """The arithmetic of the config's latent hierarchy."""
    keys = "num_scales num_groups latent_channels process_blocks adaptive_groups min_groups"
    return Hierarchy(
        image_size=config.data.image_size, **{key: config.model[key] for key in keys.split()}
    )


def build_likelihood(config):
    """Maps the decoder's logits to an `likelihoods.ImageDistribution`."""
    return partial(
        likelihoods.make,
        config.model.likelihood,
        num_bits=config.data.num_bits,
        padding=config.data.padding,
    )


def image_shape(config):
    """(H, W, C) of the images that the model sees."""
    return (config.data.image_size, config.data.image_size, config.data.channels)


def _check_positive(section, keys):
    for key in keys.split():
        if section[key] < 1:
            raise ValueError(f"model.{key} must be at least 1, not {section[key]}")


def _choose(table, key, value):
    if value not in table:
        raise ValueError(f"{key} is {value!r}; it must be one of: {', '.join(table)}")
    return table[value]
