import math
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from nvae_jax import build
from nvae_jax.models import cells
from nvae_jax.models.initialize import _initial_values, initialize
from nvae_jax.models.parameter_modules import describe_variables
from tests.conftest import tiny_config


def noise_for(model, batch, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(batch, *s)).astype(np.float32) for s in model.latent_shapes()]


# Whole passes are compiled: operation by operation, hundreds of programs would be compiled.
initialized = jax.jit(initialize, static_argnums=0)


@partial(jax.jit, static_argnames=("model", "method"))
def run(model, variables, *args, method=None, **kwargs):
    return model.apply(variables, *args, method=method, **kwargs)


def make(**model_keys):
    config = tiny_config(model=model_keys)
    model = build.build_model(config)
    images = np.random.default_rng(1).random((2, 16, 16, 1)).astype(np.float32)
    return model, images


def test_outputs_have_the_documented_shapes(tiny):
    experiment, state, images = tiny
    out = run(experiment.model, state.variables, images, noise=noise_for(experiment.model, 4))
    assert out.logits.shape == (4, 16, 16, 1)
    assert out.kl.shape == (4, 4)
    assert out.log_q.shape == out.log_p.shape == (4,)
    assert out.kl_per_channel.shape == (4, 4)
    assert [z.shape for z in out.latents] == [(4, *s) for s in experiment.model.latent_shapes()]
    np.testing.assert_allclose(out.kl_per_channel.sum(1), out.kl.mean(0), rtol=1e-5)
    assert (np.asarray(out.kl) >= 0).all()


def test_unrolling_does_not_change_the_outputs(tiny):
    experiment, state, images = tiny
    noise = noise_for(experiment.model, 4)

    def logits_and_gradient(model):
        def loss(params):
            out = run(model, {**state.variables, "params": params}, images, noise=noise)
            return out.kl.sum(), out.logits

        gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(state.params)
        return logits, gradient

    ours = logits_and_gradient(experiment.model)
    theirs = logits_and_gradient(experiment.model.clone(unroll=1))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(ours[1], theirs[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("num_groups", "looped"), [(16, False), (17, True)])
def test_only_small_models_are_unrolled_by_default(num_groups, looped):
    """By default, at most 2 scales of 16 groups are unrolled."""
    model, _ = make(num_groups=num_groups)
    assert (model.unroll == 1) == looped
    model, _ = make(num_groups=num_groups, unroll=4)
    assert model.unroll == 4


def test_parameters_of_the_groups_of_a_scale_are_stacked(tiny):
    _, state, _ = tiny
    params = state.params
    assert params["bottom_up"]["scale_0"]["cell_0"]["body"]["conv_0"]["kernel"].shape[0] == 2
    assert params["top_down"]["scale_0"]["prior_head"]["kernel"].shape[0] == 2
    assert params["top_down"]["scale_1"]["prior_head"]["kernel"].shape[0] == 1


@pytest.mark.parametrize("residual", [True, False])
def test_a_residual_posterior_is_relative_to_the_prior(residual):
    """If the posterior heads are zero, a residual posterior equals the prior: the KL is zero."""
    model, images = make(num_scales=1, residual_posterior=residual, unroll=1)
    variables = initialized(model, jax.random.key(0), images)

    def shut(path, value):
        if not any(k.key == "posterior_head" for k in path):
            return value
        # The effective kernel is exp(log_scale) times a kernel of norm 1.
        return jnp.full_like(value, -100.0) if path[-1].key == "log_scale" else value * 0

    params = jax.tree_util.tree_map_with_path(shut, variables["params"])
    variables = {**variables, "params": params}
    kl = np.asarray(run(model, variables, images, noise=noise_for(model, 2)).kl)
    if residual:
        np.testing.assert_allclose(kl, 0, atol=1e-4)
    else:
        assert (kl[:, 1:].sum(1) > 1e-3).all()


def test_the_first_prior_has_scale_1_01(tiny):
    experiment, state, _ = tiny
    noise = noise_for(experiment.model, 1)

    def first_state(noise):
        return run(
            experiment.model,
            state.variables,
            noise,
            method=lambda m, noise: m.top_down(None, noise, jnp.ones(4), False)[1][0].z,
        )

    np.testing.assert_allclose(first_state(noise), 1.01 * noise[0], rtol=1e-6)


def test_temperature_scales_the_noise(tiny):
    experiment, state, _ = tiny
    model, noise = experiment.model, noise_for(tiny[0].model, 2)

    def logits(noise, temperature):
        return run(
            model, state.variables, noise=noise, temperature=temperature, method="sample_logits"
        )

    scaled = logits([0.5 * n for n in noise], 1.0)
    np.testing.assert_allclose(logits(noise, 0.5), scaled, rtol=1e-4, atol=1e-5)


def test_a_model_of_one_group_has_no_towers():
    model, images = make(num_scales=1, num_groups=1, unroll=1)
    variables = initialized(model, jax.random.key(0), images)
    params = variables["params"]
    assert set(params["top_down"]) == {"start", "first_group"}
    assert set(params["bottom_up"]) == {"head"}
    assert params["top_down"]["first_group"]["merge"]["kernel"].shape == (1, 1, 4, 16)
    out = run(model, variables, images, noise=noise_for(model, 2))
    moved = jax.tree.map(lambda a: a, variables)
    moved["params"]["top_down"]["start"] = params["top_down"]["start"] + 1.0
    again = run(model, moved, images, noise=noise_for(model, 2))
    np.testing.assert_array_equal(out.logits, again.logits)


def test_with_flows_the_kl_is_estimated_from_one_sample():
    model, images = make(num_scales=1, num_flows=1, unroll=1)
    variables = initialized(model, jax.random.key(0), images)
    out = run(model, variables, images, noise=noise_for(model, 2))
    np.testing.assert_allclose(out.kl.sum(1), out.log_q - out.log_p, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cells", [("residual_elu", "residual_elu"), ("residual_elu", "residual")])
def test_data_dependent_initialization_sets_every_convolution_of_the_bodies(cells):
    model, images = make(num_scales=1, encoder_cell=cells[0], decoder_cell=cells[1], unroll=1)
    assert model.needs_data_init
    real = initialized(model, jax.random.key(0), images)["params"]
    other = initialized(model, jax.random.key(0), images * 0.1)["params"]
    path = ("bottom_up", "scale_0", "cell_0", "body", "conv_1", "log_scale")
    for key in path:
        real, other = real[key], other[key]
    assert np.abs(np.asarray(real - other)).max() > 0.01


def test_initialize_draws_from_the_distributions_of_flax_init():
    """The structure and the range of each array equal those of Flax's own init."""
    model, images = make(num_scales=1, unroll=1)
    ours = initialized(model, jax.random.key(0), images)
    theirs = jax.jit(partial(nn.Module.init, model))(jax.random.key(0), images)
    assert jax.tree.structure(ours["params"]) == jax.tree.structure(theirs["params"])
    assert jax.tree.structure(ours["batch_stats"]) == jax.tree.structure(theirs["batch_stats"])

    def same_range(path, a, b):
        assert a.shape == b.shape, path
        if a.size > 200:
            np.testing.assert_allclose(np.std(a), np.std(b), rtol=0.15, err_msg=str(path))
            np.testing.assert_allclose(np.mean(a), np.mean(b), atol=0.3 * np.std(b) + 1e-6)

    jax.tree_util.tree_map_with_path(same_range, ours["params"], theirs["params"])


def test_flax_init_returns_the_initial_values_of_training(tiny, monkeypatch):
    """This holds eagerly, under jit and with keys by name, without running the model."""
    experiment, state, images = tiny
    _, modules = describe_variables(experiment.model, images.shape[1:])
    assert list(modules) == sorted(modules)  # so that every process compiles the same program
    monkeypatch.setattr(nn.Module, "init", None)
    key = jax.random.split(jax.random.key(experiment.seed), 3)[0]
    init = experiment.model.init
    eager = init(key, images)
    jax.tree.map(np.testing.assert_array_equal, eager, state.trained)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), (eager, experiment.abstract_variables()))
    assert shapes[0] == shapes[1]
    jax.tree.map(np.testing.assert_array_equal, init({"params": key}, images[:1]), eager)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, jax.jit(init)(key, images), eager)


def test_init_with_another_method_is_left_to_flax(tiny):
    experiment, state, images = tiny
    init = partial(experiment.model.init, method="encode")
    variables = jax.eval_shape(init, jax.random.key(0), images)
    assert "bottom_up" in variables["params"] and "top_down" not in variables["params"]


@partial(jax.jit, static_argnums=0)
def initialized_by_modules(model, key, images):
    """`initialize`, but constant values come from the initialisers of the modules."""
    draw_key, latent_key = jax.random.split(key)
    rngs = {"params": latent_key, "latent": latent_key}
    shapes, modules = describe_variables(model, images.shape[1:])
    values = _initial_values(draw_key, {**shapes["params"], **shapes["batch_stats"]}, modules)
    drawn = {path: v for path, v in values.items() if path[-1] in modules[path[:-1]].RANDOM}
    params = traverse_util.unflatten_dict(drawn)
    _, variables = model.apply(
        {"params": params}, images, mutable=["params", "batch_stats"], rngs=rngs
    )
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


@pytest.mark.parametrize(
    "keys",
    [
        {"num_scales": 1, "num_groups": 3, "num_flows": 2},
        {"num_scales": 1, "num_groups": 1, "num_flows": 1, "squeeze_excitation": False},
        {"encoder_cell": "inverted_residual", "decoder_cell": "residual_bn_elu"},
        {"encoder_cell": "residual_elu", "decoder_cell": "residual", "num_flows": 1}
        | {"num_scales": 1},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
def test_constant_initial_values_are_those_of_the_modules(keys):
    model, images = make(unroll=1, **keys)
    ours = initialized(model, jax.random.key(3), images)
    theirs = initialized_by_modules(model, jax.random.key(3), images)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ours, theirs)


class GainBody(cells.ResidualBody):
    """A body with a parameter of its own."""

    @nn.compact
    def __call__(self, x, train):
        gain = self.param("gain", nn.initializers.constant(0.5), (1, 1, 1, self.features))
        return gain * super().__call__(x, train)


def test_a_new_kind_of_cell_is_initialized_by_its_own_module(monkeypatch):
    monkeypatch.setitem(cells.BODIES, "gain", GainBody)
    model, images = make(num_scales=1, num_groups=1, encoder_cell="gain", unroll=1)
    params = initialized(model, jax.random.key(0), images)["params"]
    body = params["preprocess"]["block_0_down"]["body"]
    np.testing.assert_array_equal(body["gain"], np.full((1, 1, 1, 16), 0.5))
    np.testing.assert_array_equal(body["norm_0"]["scale"], np.ones(8))


def test_wrong_noise_is_refused(tiny):
    experiment, state, images = tiny
    noise = noise_for(experiment.model, 4)[:-1]
    with pytest.raises(ValueError, match="noise has shapes"):
        run(experiment.model, state.variables, images, noise=noise)


def test_without_given_noise_it_is_drawn_from_the_rng_named_latent(tiny):
    experiment, state, images = tiny

    def logits(seed):
        rngs = {"latent": jax.random.key(seed)}
        return np.asarray(run(experiment.model, state.variables, images, rngs=rngs).logits)

    np.testing.assert_array_equal(logits(0), logits(0))
    assert (logits(0) != logits(1)).any()


def test_the_latent_shapes_add_up_to_the_number_of_latent_variables(tiny):
    assert sum(math.prod(s) for s in tiny[0].model.latent_shapes()) == 2 * 4 * 4 * 4 + 2 * 8 * 8 * 4
