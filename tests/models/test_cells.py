from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from nvae_jax.models import cells, layers
from tests.ops.implementations import NATIVE, PORTABLE

X = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", sorted(cells.BODIES))
@pytest.mark.parametrize(
    ("resample", "features", "size"), [(None, 8, 4), ("down", 16, 2), ("up", 4, 8)]
)
def test_every_kind_of_cell_has_the_expected_output_shape(kind, resample, features, size):
    cell = cells.Cell(features, kind, resample)
    init = partial(cell.init_with_output, jax.random.key(0), train=True)
    y, variables = jax.eval_shape(init, X)
    assert y.shape == (2, size, size, features)
    assert ("batch_stats" in variables) == (kind != "residual_elu")


def test_cell_is_skip_plus_a_tenth_of_the_gated_body():
    cell = cells.Cell(8, "residual")
    variables = cell.init(jax.random.key(0), X, False)
    params, stats = variables["params"], variables["batch_stats"]
    body = {"params": params["body"], "batch_stats": stats["body"]}
    inner = cells.ResidualBody(8).apply(body, X, False)
    inner = layers.SqueezeExcitation().apply({"params": params["se"]}, inner, 0.0)
    np.testing.assert_allclose(
        cell.apply(variables, X, False), X + 0.1 * inner, rtol=1e-5, atol=1e-6
    )


def test_an_up_body_equals_upsampling_before_the_body():
    """Compares the published order of operations with the cheaper one of the module."""
    body = cells.InvertedResidualBody(4, "up", expansion=3)
    plain = cells.InvertedResidualBody(4, None, expansion=3)
    variables = body.init(jax.random.key(0), X, True)
    doubled = layers.upsample_nearest(X)
    ours, our_stats = body.apply(variables, X, True, mutable=["batch_stats"])
    theirs, their_stats = plain.apply(variables, doubled, True, mutable=["batch_stats"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), our_stats, their_stats
    )


@pytest.mark.parametrize("ops", [PORTABLE, NATIVE])
@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_an_inverted_residual_with_running_statistics_equals_one_with_batch_statistics(
    resample, ops
):
    """Compares inference with a training pass whose batch has exactly the running statistics."""
    kernels = partial(layers.Conv, ops=ops)
    body = cells.InvertedResidualBody(8, resample, conv=kernels)
    variables = body.init(jax.random.key(0), X, True)
    params = {
        name: {k: v + 0.3 if "norm" in name else v for k, v in values.items()}
        for name, values in variables["params"].items()
    }
    norm = partial(layers.BatchNorm, momentum=1.0)
    trained = cells.InvertedResidualBody(8, resample, norm=norm)
    expected, stats = trained.apply({**variables, "params": params}, X, True, mutable="batch_stats")
    # Batches are normalised with the biased variance; the running one is unbiased.
    hidden = {"norm_in": X.size // 8 * (4 if resample == "up" else 1)}
    hidden["norm_expand"] = hidden["norm_in"]
    hidden["norm_depthwise"] = hidden["norm_out"] = expected.size // 8
    stats = {
        name: {"mean": values["mean"], "var": values["var"] * (1 - 1 / hidden[name])}
        for name, values in stats["batch_stats"].items()
    }
    found = body.apply({"params": params, "batch_stats": stats}, X, False)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_the_expansion_sets_the_hidden_width():
    params = cells.InvertedResidualBody(8, expansion=5).init(jax.random.key(0), X, False)["params"]
    assert params["conv_depthwise"]["kernel"].shape == (5, 5, 1, 40)


def test_the_elu_kinds_use_elu():
    assert cells.body("residual_bn_elu").keywords["activation"] is nn.elu
    assert cells.body("residual_elu").keywords == {"activation": nn.elu, "use_norm": False}


def test_skip_down_reads_the_four_corners_in_order():
    skip = cells.SkipDown(8)
    variables = skip.init(jax.random.key(0), X)
    y = skip.apply(variables, X)
    for i, (row, column) in enumerate(((0, 0), (1, 1), (0, 1), (1, 0))):
        conv = {"params": variables["params"][f"conv_{i}"]}
        part = layers.Conv(2, 1).apply(conv, nn.swish(X)[:, row::2, column::2])
        np.testing.assert_allclose(y[..., 2 * i : 2 * i + 2], part, rtol=1e-5, atol=1e-6)


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown cell 'resnet'; known: residual, "):
        cells.body("resnet")
