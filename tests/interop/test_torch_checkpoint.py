"""Names, shapes and layouts of published state dicts."""

import jax
import numpy as np
import pytest

from nvae_jax.interop import torch_checkpoint
from nvae_jax.interop.arguments import export_args


def trees_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_export_exactly_reverses_conversion(golden):
    config, variables = torch_checkpoint.convert_state(golden.state, golden.args)
    exported = torch_checkpoint.export_state(config, variables)
    kept = {n for n in golden.state if not n.endswith(torch_checkpoint.IGNORED_SUFFIXES)}
    assert set(exported) == kept
    for name in kept:
        np.testing.assert_array_equal(exported[name], golden.state[name])
        assert exported[name].shape == golden.state[name].shape


@pytest.mark.parametrize(
    "cells", [("residual_bn_elu",) * 2, ("residual_elu",) * 2, ("inverted_residual",) * 2]
)
def test_every_kind_of_cell_survives_export_and_conversion(small_config, cells):
    config = small_config.copy_and_resolve_references()
    config.model.update(encoder_cell=cells[0], decoder_cell=cells[1])
    shapes = torch_checkpoint.shapes(config)
    rng = np.random.default_rng(0)
    variables = {}
    for path, shape in shapes.items():
        node = variables
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = rng.random(shape, np.float32)
    variables.setdefault("batch_stats", {})
    state = torch_checkpoint.export_state(config, variables)
    _, again = torch_checkpoint.convert_state(state, export_args(config))
    trees_equal(again, variables)


@pytest.fixture
def published(small_config, small_variables):
    """(state, args) of the small model."""
    state = torch_checkpoint.export_state(small_config, small_variables)
    return state, export_args(small_config)


def test_arrays_that_can_be_ignored_are_ignored(published):
    state, args = published
    state = {**state, "weight_normalized": np.ones(()), "stem.weight_normalized": np.ones(())}
    torch_checkpoint.convert_state(state, args)


def test_a_missing_array_is_named(published):
    state, args = published
    del state["stem.bias"]
    with pytest.raises(ValueError, match="1 array.*missing, first stem.bias"):
        torch_checkpoint.convert_state(state, args)


def test_an_unknown_array_is_named(published):
    state, args = published
    state["discriminator.weight"] = np.ones(3)
    with pytest.raises(ValueError, match="not expected, first discriminator.weight"):
        torch_checkpoint.convert_state(state, args)


@pytest.mark.parametrize(
    "name, shape", [("stem.weight", (4, 3, 3, 3)), ("stem.bias", (8,)), ("prior_ftr0", (16, 8))]
)
def test_an_array_of_another_shape_is_named(published, name, shape):
    state, args = published
    state[name] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=f"of another shape, first {name} .* instead of"):
        torch_checkpoint.convert_state(state, args)


def test_arguments_that_contradict_the_arrays_are_an_error(published):
    state, args = published
    with pytest.raises(ValueError, match="of another shape"):
        torch_checkpoint.convert_state(state, {**args, "num_channels_enc": 8})


def test_a_model_of_one_group_cannot_be_exported(small_config, small_variables):
    config = small_config.copy_and_resolve_references()
    config.model.num_groups = 1
    with pytest.raises(ValueError, match="one group"):
        torch_checkpoint.export_state(config, small_variables)
