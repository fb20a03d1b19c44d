"""Every config file builds; the published ones have exactly the published sizes."""

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from nvae_jax import build
from nvae_jax.ops import native

CONFIGS = sorted(
    p.stem for p in (Path(__file__).parents[1] / "configs").glob("*.py") if p.stem[0] != "_"
)
PUBLISHED = {  # name: (parameters, groups fine to coarse, steps an epoch, epochs)
    "mnist": (33_363_134, (10, 5), 60_000 // 400, 400),
    "cifar10": (130_852_480, (30,), 50_000 // 256, 400),
    "celeba64": (153_281_364, (20, 10, 5), 162_770 // 128, 90),
    "imagenet32": (268_509_444, (28,), 1_281_147 // 576, 45),
    "celebahq256": (330_798_664, (16, 8, 4, 4, 4), 27_000 // 96, 300),
    "ffhq256": (330_798_664, (16, 8, 4, 4, 4), 63_000 // 96, 200),
}


def load(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.unroll = 1  # shapes do not depend on it, tracing time does
    if not config.data.image_size:  # one's own images: as if they were in colour, 64×64
        config.data.update(image_size=64, channels=3)
        config = build.resolve(config)
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_and_is_locked(name):
    config = load(name)
    with pytest.raises((AttributeError, KeyError)):
        config.model.no_such_key = 1
    state = build.build(config).abstract_state()
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(state.params))
    assert count > 0
    if name in PUBLISHED:
        assert count == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules(name):
    config = load(name)
    _, groups, epoch_steps, epochs = PUBLISHED[name]
    assert build.build_hierarchy(config).groups == groups
    assert config.train.num_steps == epoch_steps * epochs
    assert config.optimizer.warmup_steps == epoch_steps * (1 if name == "imagenet32" else 5)


def test_ffhq_has_the_papers_number_of_latent_variables():
    shapes = build.build_model(load("ffhq256")).latent_shapes()
    assert sum(math.prod(shape) for shape in shapes) == 6_005_760


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.image_size", 30, "not divisible by 8"),
        ("model.num_groups", 0, "model.num_groups must be at least 1"),
        ("model.likelihood", "poisson", "unknown likelihood"),
        ("model.encoder_cell", "resnet", "unknown cell"),
        ("model.dtype", "float16", "model.dtype is 'float16'; it must be one of"),
        ("model.implementation", "fast", "it must be one of: auto, library, shifted, native"),
        ("model.encoder_width", 0, "model.encoder_width must be at least 1"),
        ("model.norm_groups", 3, "model.norm_groups=3 does not divide the 32 images"),
        ("train.batch_size", 0, "train.batch_size must be at least 1"),
        ("data.num_bits", 9, "num_bits"),
        ("optimizer.learning_rate", -1.0, "optimizer.learning_rate must be positive"),
    ],
)
def test_bad_values_are_named(key, value, message):
    config = load("fashion_mnist_small")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        build.build(config)


def test_native_kernels_are_for_one_cpu_device(monkeypatch):
    config, (device, *_) = load("fashion_mnist_small"), jax.devices("cpu")
    monkeypatch.setattr(native, "problem", lambda: None)
    assert build.build_model(config, [device]).implementation == "native"
    assert build.build_model(config, [device, device]).implementation is None
    assert build.build_model(config, ()).implementation is None
    everything = build.build_model(config, jax.devices()).implementation
    assert build.build_model(config).implementation == everything
    assert build.build_model(config, [SimpleNamespace(platform="gpu")]).implementation is None
    monkeypatch.setattr(native, "problem", lambda: "there is no compiler")
    assert build.build_model(config, [device]).implementation is None
    config.model.implementation = "native"
    with pytest.raises(ValueError, match="'native', but there is no compiler"):
        build.build_model(config, [device])
    with pytest.raises(ValueError, match="runs on one CPU device, not on 2"):
        build.build_model(config, [device, device])
