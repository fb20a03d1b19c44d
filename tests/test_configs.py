"""Every config file builds; the published ones have exactly the published sizes."""

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from nvae_jax import build, schema
from nvae_jax.configs import digits
from nvae_jax.ops import choice
from nvae_jax.ops.cpu import Cpu, Native, native
from nvae_jax.ops.gpu import Gpu
from nvae_jax.ops.portable import Portable
from tests.conftest import tiny_config

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
    config = importlib.import_module(f"nvae_jax.configs.{name}").get_config()
    config.model.unroll = 1  # it changes no shapes, and tracing is faster
    if not config.data.image_size:  # a user's images: as if they were colour images of 64×64
        config.data.update(image_size=64, channels=3)
        config = build.resolve(config)
    return config


def count_parameters(experiment):
    return sum(math.prod(p.shape) for p in jax.tree.leaves(experiment.abstract_state().params))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_and_is_locked(name):
    config = load(name)
    with pytest.raises((AttributeError, KeyError)):
        config.model.no_such_key = 1
    build.check(importlib.import_module(f"nvae_jax.configs.{name}").get_config())  # reads no data
    experiment = build.build(config)
    if name not in PUBLISHED:  # the published ones are traced in tests/planning/test_lowering.py
        assert count_parameters(experiment) > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_published_schedules(name):
    config = load(name)
    _, groups, epoch_steps, epochs = PUBLISHED[name]
    assert build.build_hierarchy(config).groups == groups
    assert config.train.num_steps == epoch_steps * epochs
    assert config.optimizer.warmup_steps == epoch_steps * (1 if name == "imagenet32" else 5)


def test_ffhq_has_the_number_of_latent_variables_of_the_paper():
    shapes = build.build_model(load("ffhq256")).latent_shapes()
    assert sum(math.prod(shape) for shape in shapes) == 6_005_760


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.image_size", 30, "^data.image_size=30 is not divisible by 8"),
        ("model.num_groups", 0, "model.num_groups must be an integer from 1 to 1,000, not 0"),
        (
            "model.likelihood",
            "poisson",
            "model.likelihood is 'poisson'; it must be one of: ",
        ),
        (
            "model.encoder_cell",
            "resnet",
            "model.encoder_cell is 'resnet'; it must be one of: ",
        ),
        ("model.dtype", "float16", "model.dtype is 'float16'; it must be one of"),
        (
            "model.implementation",
            "fast",
            "it must be one of: auto, portable, cpu, native, pallas",
        ),
        ("model.encoder_width", 0, "model.encoder_width must be an integer from 1"),
        ("model.norm_groups", 3, "model.norm_groups=3 does not divide the 32 images"),
        ("train.batch_size", 0, "train.batch_size must be an integer from 1"),
        ("data.num_bits", 17, "data.num_bits must be an integer from 1 to 16, not 17"),
        ("data.channels", 2, "data.channels must be 1 or 3"),
        ("optimizer.learning_rate", -1.0, "optimizer.learning_rate must be a number from 1e-30"),
    ],
)
def test_invalid_values_are_errors_that_name_their_key(key, value, message):
    config = load("fashion_mnist_small")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message):
        build.build(config)


NUMBERS = {
    key: type(value) for key, value in schema.DEFAULTS.items() if type(value) in (int, float)
}


def test_every_number_of_the_config_has_a_range():
    assert set(schema.RANGES) == set(NUMBERS)
    for key, (low, high) in schema.RANGES.items():
        assert low <= schema.DEFAULTS[key] <= high


# 10^9 is a valid number of steps; `RANGES` says which keys refuse it.
WRONG_NUMBERS = ["two", True, math.nan, math.inf, -math.inf, 10**30, -(10**30), 1e30, -1e30, -7]
WRONG = {
    str: [1, 1.5, True, b"x"],
    bool: ["two", "True", 0, 1, 1.0, math.nan],
    int: [*WRONG_NUMBERS, 1.5, 1.0],
    float: WRONG_NUMBERS,
}


@pytest.mark.parametrize("key", sorted(schema.DEFAULTS))
def test_a_wrong_value_of_any_key_is_a_one_line_error(key):
    for value in [None, [], (1,), *WRONG[type(schema.DEFAULTS[key])]]:
        with pytest.raises(ValueError, match=f"^{key} must be [^\\n]*, not [^\\n]*$") as error:
            schema.changed(digits.get_config(), {key: value})
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("key", sorted(NUMBERS))
def test_a_billion_is_refused_by_the_name_of_its_key_or_can_be_built(key):
    try:
        config = schema.changed(tiny_config(), {key: 10**9})
    except ValueError as error:
        assert str(error).startswith(f"{key} must be")
    else:
        build.build(config)


def test_every_build_function_checks_its_config():
    config = digits.get_config().unlock()
    config.optimizer = ConfigDict({**config.optimizer, "epsilon": math.nan})
    for function in (build.build, build.build_model, build.resolve, build.build_distributed):
        with pytest.raises(ValueError, match="optimizer.epsilon must be a number from"):
            function(config)
        with pytest.raises(ValueError, match="a config must be a ConfigDict, not None"):
            function(None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.workers": 10**9}, "data.workers must be an integer from 0 to 256, not 1000000000"),
        ({"model.num_groups": 10**6}, "model.num_groups must be an integer from 1 to 1,000"),
        ({"data.image_size": 10**9}, "data.image_size must be an integer from 0 to 8,192"),
        ({"train.batch_size": 10**12}, "train.batch_size must be an integer from 1 to 1,000,000"),
        ({"train.batch_size": 10**6, "data.image_size": 1024}, "train.batch_size=1000000 images"),
        ({"eval.batch_size": 10**6, "data.image_size": 1024}, "eval.batch_size=1000000 images"),
        ({"model.encoder_width": 10**9}, "model.encoder_width must be an integer from 1 to 10,000"),
        (
            {"model.encoder_width": 10**4, "model.process_blocks": 4, "model.num_scales": 3},
            "model.encoder_width=10000, .* has more than .*e.13 parameters: at most 1e.11",
        ),
    ],
)
def test_contradictory_values_are_refused_without_building_anything(changes, message):
    with pytest.raises(ValueError, match=message):
        schema.changed(digits.get_config(), changes)


@pytest.mark.parametrize(
    ("platform", "unrolled"),
    [("cpu", {"mnist", "cifar10", "imagenet32"}), ("gpu", set(PUBLISHED)), ("tpu", set())],
)
def test_groups_are_unrolled_where_the_devices_compile_that_soon(platform, unrolled):
    for name in PUBLISHED:
        config = load(name)
        config.model.unroll = 0
        model = build.build_model(config, [SimpleNamespace(platform=platform)])
        assert (model.unroll > 1) == (name in unrolled), name


def test_without_the_triton_backend_of_pallas_a_gpu_runs_plain_jax(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("nvae_jax.ops.gpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("jax.experimental.pallas.triton")
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    warnings = []
    monkeypatch.setattr(choice.logging, "warning", lambda *line: warnings.append(line))
    gpu = SimpleNamespace(platform="gpu")
    assert choice.choose("auto", [gpu]) == Portable()
    assert len(warnings) == 1 and "Pallas kernels" in warnings[0][1]
    with pytest.raises(ValueError, match="'pallas', but jax .* lacks .*pallas.triton"):
        choice.choose("pallas", [gpu])


def test_native_kernels_are_chosen_only_for_one_cpu_device(monkeypatch):
    config, (device, *_) = load("fashion_mnist_small"), jax.devices("cpu")
    monkeypatch.setattr(native, "problem", lambda: None)
    assert build.build_model(config, [device]).ops == Native()
    assert build.build_model(config, [device, device]).ops == Cpu()
    assert build.build_model(config, ()).ops == Portable()
    everything = build.build_model(config, jax.devices()).ops
    assert build.build_model(config).ops == everything
    gpu = SimpleNamespace(platform="gpu")
    assert build.build_model(config, [gpu]).ops == Gpu()
    assert build.build_model(config, [gpu, gpu]).ops == Portable()
    said = []
    monkeypatch.setattr(native, "problem", lambda: "there is no compiler")
    monkeypatch.setattr(choice.logging, "warning", lambda *line: said.append(line))
    assert build.build_model(config, [device, device]).ops == Cpu()
    assert not said  # they do not run on this device
    for _ in range(2):
        assert build.build_model(config, [device]).ops == Cpu()
    assert len(said) == 1 and said[0][-1] == "there is no compiler"
    config.model.implementation = "native"
    with pytest.raises(ValueError, match="'native', but there is no compiler"):
        build.build_model(config, [device])
    with pytest.raises(ValueError, match="runs on one CPU device, not on 2"):
        build.build_model(config, [device, device])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mesh.data", 0, "mesh.data and mesh.fsdp must be positive"),
        ("data.name", "mnits", "data.name: unknown data set 'mnits'"),
        ("model.num_scales", 9, "is not divisible by"),
        ("optimizer.learning_rate", -1.0, "optimizer.learning_rate must be"),
        ("objective.kl_min", 2.0, "objective.kl_min must be"),
        ("train.num_steps", 0, "train.num_steps must be"),
        ("distributed.timeout", 1, "distributed.timeout must be"),
    ],
)
def test_a_config_is_checked_without_its_data_and_devices(key, value, message):
    config = digits.get_config()
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(ValueError, match=message):
        build.check(config)
