"""The compiled program of a training step: what it must not contain, and with what it must not
grow."""

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from nvae_jax import build, optim, regularizers
from nvae_jax import experiment as experiment_lib
from nvae_jax.ops.cpu import Cpu, Native
from nvae_jax.ops.portable import Portable
from tests.conftest import tiny_config


def experiment_of(**model):
    sizes = {"unroll": 1, "adaptive_groups": False, "num_groups": 2, **model}
    return build.build(tiny_config(model=sizes))


def lower(experiment):
    return experiment.train_step().lower(experiment.abstract_state(), experiment.abstract_images())


@pytest.fixture(scope="module")
def experiment():
    return experiment_of()


@pytest.fixture(scope="module")
def lowered(experiment):
    return lower(experiment)


@pytest.fixture(scope="module")
def compiled(lowered):
    return lowered.compile()


def equations(jaxpr):
    """All equations of a jaxpr and of the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, core.ClosedJaxpr | core.Jaxpr):
                    yield from equations(getattr(part, "jaxpr", part))


def products_of_penalty(layers):
    """Matrix products of the spectral penalty of `layers` kernels of either of two shapes."""
    shapes = ((3, 3, 4, 8), (1, 1, 6, 5))
    kernels = {
        f"{i}_{j}": {"kernel": jnp.ones(shape)}
        for i in range(layers)
        for j, shape in enumerate(shapes)
    }
    vectors = regularizers.init_spectral_vectors(jax.random.key(0), kernels)
    program = jax.make_jaxpr(Portable().spectral_penalty)(kernels, vectors, regularizers.ROUNDS)
    names = [equation.primitive.name for equation in equations(program.jaxpr)]
    return names.count("dot_general")


def test_the_spectral_penalty_has_products_for_each_shape_not_for_each_layer():
    # For each shape two in the loop, two in the last round, two for u'Wv.
    assert products_of_penalty(1) == products_of_penalty(7) <= 2 * 6


def test_small_parameters_are_updated_as_one_vector():
    optimizer = optim.adamax(optim.OptimizerSettings(num_steps=10))

    def size(number):
        params = {str(i): jnp.ones(7 + i) for i in range(number)}
        state = optimizer.init(params)
        program = jax.make_jaxpr(optimizer.update)(params, state, params)
        names = [equation.primitive.name for equation in equations(program.jaxpr)]
        return names.count("max")

    assert size(2) == size(20)


def test_a_step_has_no_float64_and_no_communication_with_the_host(lowered):
    text = lowered.as_text()
    assert "f64" not in text
    for word in ("callback", "infeed", "outfeed", "stablehlo.send", "stablehlo.recv"):
        assert word not in text


def test_every_array_of_the_state_is_updated_in_place(experiment, compiled):
    header = compiled.as_text().split("\n", 1)[0]
    aliased = {int(number) for number in re.findall(r"\((\d+), \{\}, \w+-alias\)", header)}
    assert aliased >= set(range(len(jax.tree.leaves(experiment.abstract_state()))))


def test_one_compilation_serves_all_steps(experiment, caplog):
    images = np.zeros((experiment.loop.batch_size, *experiment.image_shape), np.float32)
    state, step = experiment.create_state(images), experiment.train_step()
    state, _ = step(state, images)
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        for _ in range(2):
            state, metrics = step(state, images)
        jax.block_until_ready(metrics)
    assert not [r for r in caplog.records if "ompil" in r.getMessage()]


def test_experiments_with_equal_steps_share_the_compiled_step(experiment):
    """The step does not depend on logging or the folder of data, but on the optimiser."""
    loop = dataclasses.replace(experiment.loop, log_every_steps=7)
    elsewhere = dataclasses.replace(experiment.data, dir="/elsewhere")
    same = dataclasses.replace(experiment, loop=loop, data=elsewhere, seed=3)
    assert same.train_step() is experiment.train_step() is experiment_of().train_step()
    other, rate = build._optimizer(optim.OptimizerSettings(num_steps=7, warmup_steps=2))
    other = dataclasses.replace(experiment, optimizer=other, learning_rate=rate)
    assert other.train_step() is not experiment.train_step()


def test_a_looped_program_does_not_grow_with_the_number_of_groups():
    few, more = (
        lower(experiment_of(num_scales=1, num_groups=number)).as_text() for number in (3, 6)
    )
    # Each group has noise of its own, and a row of the metrics; six groups against three.
    assert more.count("\n") < 1.03 * few.count("\n")


def test_a_step_without_native_kernels_has_its_own_compiler_options(monkeypatch):
    asked, experiment = [], experiment_of()
    monkeypatch.setattr(experiment_lib.compiler, "options", lambda _, **kind: asked.append(kind))
    uncached = experiment_lib._train_step.__wrapped__
    monkeypatch.setattr(experiment_lib, "_train_step", uncached)
    for ops in (Native(), Cpu(), Portable()):
        dataclasses.replace(experiment, model=experiment.model.clone(ops=ops)).train_step()
    assert asked == [{}, {"unrolled": True}, {"unrolled": True}]


def test_every_product_has_the_requested_precision():
    """By default, accelerators multiply float32 numbers with fewer bits."""
    model = {"num_flows": 1, "precision": "highest", "dtype": "float32"}
    experiment = experiment_of(**model).portable()
    traced = experiment.train_step().trace(
        experiment.abstract_state(), experiment.abstract_images()
    )
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution)[ (].*", text)
    assert len(products) > 100
    assert [line for line in products if line.count("HIGHEST") != 2] == []
