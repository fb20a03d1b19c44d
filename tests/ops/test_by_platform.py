"""What a program is lowered to where the C++ kernels do not run."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvae_jax import build
from nvae_jax.models.initialize import initialize
from nvae_jax.models.kernels import effective_kernels
from nvae_jax.ops import native
from nvae_jax.ops.by_platform import by_platform
from nvae_jax.planning.flops import subprograms
from tests.conftest import tiny_config
from tests.ops.implementations import NEEDS_COMPILER

BATCH = 8  # what an inverted residual needs to be one call
# Kernels that no model calls.
OF_A_TRAINING_STEP = {"adamax", "norm", "spectral", "spectral_grad"}

choice = partial(by_platform, cpu=jnp.sin, default=jnp.cos)


def test_only_what_is_chosen_is_in_the_program():
    traced = jax.jit(choice).trace(jnp.ones(3))
    for platform, function in (("cpu", "sine"), ("tpu", "cosine"), ("cuda", "cosine")):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert f"stablehlo.{function} " in text
        assert text.count("sine ") == 1


def test_trees_batches_and_calls_outside_of_jit():
    def swapped(pair, shift):
        return {"sum": pair[0] + pair[1] + shift, "pair": pair[::-1]}

    pair = (np.arange(6.0).reshape(2, 3), np.ones((2, 3)))
    chosen = partial(by_platform, cpu=swapped, default=swapped)
    expected = swapped(pair, 2.0)
    for run in (chosen, jax.jit(chosen), jax.vmap(chosen, (0, None))):
        jax.tree.map(np.testing.assert_array_equal, run(pair, 2.0), expected)
    rows = jax.vmap(choice, in_axes=1, out_axes=1)(pair[0])
    np.testing.assert_allclose(rows, np.sin(pair[0]), rtol=1e-6)


def choices(jaxpr):
    """All equations that choose, in a program and those inside it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "by_platform":
            yield equation
        for part in subprograms(equation):
            yield from choices(part)


@pytest.fixture(scope="module")
def model():
    """A model of C++ kernels, and abstract variables of it."""
    config = tiny_config(model={"implementation": "native", "num_flows": 1})
    config.model.update(preprocess_cells=2, encoder_cell="residual")
    model = build.build_model(config)
    images = jnp.zeros((1, *build.image_shape(config)))
    return model, jax.eval_shape(lambda key: initialize(model, key, images), jax.random.key(0))


def passes(model):
    """Training with its gradients, sampling, and kernels that are normalised all at once, as
    functions of variables and images."""

    def train(variables, images):
        def loss(params):
            given = {**variables, "params": params}
            out, _ = model.apply(
                given,
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"latent": jax.random.key(0)},
            )
            return out.logits.sum() + out.kl.sum()

        return jax.grad(loss)(variables["params"])

    def sample(variables, images):
        rngs = {"latent": jax.random.key(0)}
        return model.apply(variables, num=len(images), rngs=rngs, method="sample_logits")

    def normalize(variables, _):
        kernels, pullback = jax.vjp(
            partial(effective_kernels, implementation="native"), variables["params"]
        )
        return pullback(kernels)

    return {"train": train, "sample": sample, "normalize": normalize}


@NEEDS_COMPILER
@pytest.mark.parametrize("kind", ["train", "sample", "normalize"])
def test_a_model_of_native_kernels_lowers_everywhere(model, kind):
    model, variables = model
    images = jax.ShapeDtypeStruct((BATCH, 16, 16, 1), jnp.float32)
    traced = jax.jit(passes(model)[kind]).trace(variables, images)
    assert "nvae_jax_" in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("tpu", "cuda"):
        assert "custom_call" not in traced.lower(lowering_platforms=(platform,)).as_text()


@NEEDS_COMPILER
def test_either_choice_has_the_same_values(model):
    model, variables = model
    images = jax.ShapeDtypeStruct((BATCH, 16, 16, 1), jnp.float32)
    programs = {}
    for function in passes(model).values():
        for equation in choices(jax.make_jaxpr(function)(variables, images).jaxpr):
            arrays = [variable.aval for variable in equation.invars]
            program = jax.make_jaxpr(equation.params["cpu"])(*arrays)
            programs[str(program)] = equation.params, arrays
    for program, (functions, arrays) in programs.items():
        rng = np.random.default_rng(0)
        # Not negative, as variances and gates are; zeros, as behind a rectifier and of indices.
        given = [np.maximum(rng.uniform(-0.2, 1.0, a.shape), 0).astype(a.dtype) for a in arrays]
        ours, theirs = (jax.jit(functions[name])(*given) for name in ("cpu", "default"))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, 1e-4, 1e-5 * np.abs(b).max(), err_msg=program)
    called = set(re.findall(r"target_name=nvae_jax_(\w+)", "".join(programs)))
    assert called == set(native.KERNELS) - OF_A_TRAINING_STEP
