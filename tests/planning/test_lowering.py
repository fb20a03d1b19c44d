"""The training step of every published config has the published number of parameters, and becomes
a program for TPU and GPU, on any machine."""

import re

import jax
import pytest

from nvae_jax import build
from tests.test_configs import PUBLISHED, count_parameters, load
from tests.test_step_program import equations

GROUPED = re.compile(r"feature_group_count = (\d+)")


def lowered(experiment):
    """The text of the training step, as one program for both platforms, of the same operations."""
    traced = experiment.train_step().trace(
        experiment.abstract_state(), experiment.abstract_images()
    )
    assert not any("platform" in e.primitive.name for e in equations(traced.jaxpr.jaxpr))
    return traced.lower(lowering_platforms=("tpu", "cuda")).as_text()


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in PUBLISHED), ("mnist", "bfloat16")]
)
def test_the_training_step_lowers(name, dtype):
    config = load(name)
    config.model.dtype = dtype
    experiment = build.build(config, jax.devices()[:1]).portable()
    assert count_parameters(experiment) == PUBLISHED[name][0]
    text = lowered(experiment)
    # The library's depthwise convolution, not the one that is fast on this machine.
    assert any(int(n) > 1 for n in GROUPED.findall(text))
    # What a kernel of one platform would be called as; plain XLA runs on all.
    assert "custom_call" not in text
    # As many loops as the scans give: groups are not unrolled.
    assert text.count("stablehlo.while") > 2
    element = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    images = re.findall(r"stablehlo.convolution.*-> tensor<[\dx]+x(\w+)>", text)
    assert images and set(images) == {element}
