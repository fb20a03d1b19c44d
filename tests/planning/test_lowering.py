"""The training step of every published config becomes a program for TPU and GPU, on any machine."""

import importlib
import re

import jax
import pytest

from nvae_jax import build

PUBLISHED = ("mnist", "cifar10", "celeba64", "imagenet32", "celebahq256", "ffhq256")
GROUPED = re.compile(r"feature_group_count = (\d+)")


def lowered(name, dtype):
    """The text of a config's training step, as one program for both platforms: it has a branch
    for each wherever they differ."""
    config = importlib.import_module(f"nvae_jax.configs.{name}").get_config()
    config.model.update(unroll=1, dtype=dtype)
    experiment = build.build(config, jax.devices()[:1]).portable()
    traced = experiment.train_step().trace(
        experiment.abstract_state(), experiment.abstract_images()
    )
    return traced.lower(lowering_platforms=("tpu", "cuda")).as_text()


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in PUBLISHED), ("mnist", "bfloat16")]
)
def test_the_training_step_lowers(name, dtype):
    text = lowered(name, dtype)
    # The library's depthwise convolution, not the one that is fast on this machine.
    assert any(int(n) > 1 for n in GROUPED.findall(text))
    # What a kernel of one platform would be called as; plain XLA runs on all.
    assert "custom_call" not in text
    # As many loops as the scans give: groups are not unrolled.
    assert text.count("stablehlo.while") > 2
    element = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    images = re.findall(r"stablehlo.convolution.*-> tensor<[\dx]+x(\w+)>", text)
    assert images and set(images) == {element}
