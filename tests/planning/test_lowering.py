"""The training step of every published config has the published number of parameters, and can be
lowered for TPU and GPU on any machine."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from nvae_jax import build, objective
from tests.test_configs import PUBLISHED, count_parameters, load
from tests.test_step_program import equations

GROUPED = re.compile(r"feature_group_count = (\d+)")


def lowered(experiment):
    """The text of the training step, as one program for both platforms."""
    traced = experiment.train_step().trace(
        experiment.abstract_state(), experiment.abstract_images()
    )
    assert not any("platform" in e.primitive.name for e in equations(traced.jaxpr.jaxpr))
    return traced.lower(lowering_platforms=("tpu", "cuda")).as_text()


# The step of FFHQ is that of CelebA-HQ, but for numbers of its schedules: see below.
TRACED = [name for name in PUBLISHED if name != "ffhq256"]


@pytest.mark.parametrize("name", TRACED)
def test_the_training_step_of_every_config_lowers_for_tpu_and_gpu(name):
    config = load(name)
    dtype = "bfloat16" if name == "mnist" else "float32"
    config.model.dtype = dtype
    experiment = build.build(config, jax.devices()[:1]).portable()
    assert count_parameters(experiment) == PUBLISHED[name][0]
    text = lowered(experiment)
    # The library's depthwise convolution, not the one that is fast on this machine.
    assert any(int(n) > 1 for n in GROUPED.findall(text))
    # Calls of kernels of one platform; the other operations run on all.
    assert "custom_call" not in text
    # The number of loops is that of the scans: groups are not unrolled.
    assert text.count("stablehlo.while") > 2
    element = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    images = re.findall(r"stablehlo.convolution.*-> tensor<[\dx]+x(\w+)>", text)
    assert images and set(images) == {element}


def test_the_step_of_ffhq_differs_from_that_of_celebahq_only_in_its_schedules():
    configs = [load(name) for name in ("celebahq256", "ffhq256")]
    one, other = (build.build(config, jax.devices()[:1]).portable() for config in configs)
    same = ("model", "likelihood", "image_shape", "mesh")
    assert all(getattr(one, name) == getattr(other, name) for name in same)
    assert one.abstract_images() == other.abstract_images()
    assert count_parameters(other) == PUBLISHED["ffhq256"][0]
    flat = [flatten_dict(config.to_dict(), sep=".") for config in configs]
    assert {key for key in flat[0] if flat[0][key] != flat[1][key]} == {
        "data.name",
        "objective.spectral",
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
        "train.num_steps",
    }

    def schedules(step):
        beta = objective.kl_weight(step, other.objective)
        rate = other.learning_rate(step)
        return beta, objective.regularizer_weight(beta, other.objective), rate

    step = jax.ShapeDtypeStruct((), jnp.int32)
    traced = jax.jit(schedules).trace(step)
    assert all(number.shape == () for number in traced.out_info)
    assert "custom_call" not in traced.lower(lowering_platforms=("tpu", "cuda")).as_text()
